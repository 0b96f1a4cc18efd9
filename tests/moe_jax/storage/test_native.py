"""Model folders: bit for bit back, whole or absent, and never over somebody else's files."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.base.files import DiskFull, digests
from moe_jax.config import Config
from moe_jax.model import decoder
from moe_jax.storage import native

CFG = Config(vocab=64, positions=16, width=16, heads=2, mlp_hidden=32, expert_hidden=24,
             experts=(4, 0, 3))


def params(cfg=CFG, dtype='float32'):
    """Weights with values a careless round trip would lose: -0, denormals, infinities, NaN."""
    rng = np.random.default_rng(0)
    tree = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), dtype), decoder.shapes(cfg)
    )
    odd = jnp.asarray([-0.0, 1e-40, np.inf, -np.inf, np.nan], dtype)
    tree['embed']['tokens'] = tree['embed']['tokens'].at[0, :5].set(odd)
    return tree


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('aliases', [(), ((0, 1, 1, 2, 3, 0), None, (2, 0, 1, 1))])
def test_round_trip_is_bit_equal(tmp_path, dtype, aliases):
    cfg = CFG.replace(aliases=aliases, dtype=dtype)
    saved = params(cfg, dtype)
    native.save(tmp_path / 'model', cfg, saved)
    loaded_cfg, loaded = native.load(tmp_path / 'model')
    assert loaded_cfg == cfg
    assert_equal(loaded, saved)


def test_numpy_weights_and_lineage(tmp_path):
    saved = jax.tree.map(np.array, params())
    native.save(str(tmp_path / 'a' / 'model'), CFG, saved, {'parent': 'x', 'experts': [4, 3]})
    assert_equal(native.load(str(tmp_path / 'a' / 'model'))[1], saved)
    assert native.load_lineage(tmp_path / 'a' / 'model') == {'parent': 'x', 'experts': [4, 3]}
    assert [path.name for path in (tmp_path / 'a').iterdir()] == ['model']


def test_overwriting_is_asked_for_and_only_ours(tmp_path):
    path = tmp_path / 'model'
    native.save(path, CFG, params())
    with pytest.raises(FileExistsError, match='model: exists and is not empty'):
        native.save(path, CFG, params())
    other = CFG.with_experts(2)
    native.save(path, other, params(other), overwrite=True)
    assert native.load(path)[0] == other
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis' / 'config.json').write_text('{}')
    with pytest.raises(ValueError, match='thesis: not a moe-jax model folder'):
        native.save(tmp_path / 'thesis', CFG, params(), overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['model', 'thesis']


def test_an_empty_folder_is_a_target(tmp_path):
    (tmp_path / 'model').mkdir()
    native.save(tmp_path / 'model', CFG, params())
    assert native.load(tmp_path / 'model')[0] == CFG


def test_what_is_not_a_model_folder_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / 'absent'):
        with pytest.raises(ValueError, match=rf'{path}: not a moe-jax model folder'):
            native.load(path)


def test_params_that_disagree_with_the_config_are_refused(tmp_path):
    wrong = params()
    wrong['layer_0']['moe']['router']['kernel'] = jnp.zeros((3, 16), jnp.float32)
    del wrong['layer_1']['mlp']['up_bias']
    message = (r'in 2 leaves: layer_0/moe/router/kernel has shape \(3, 16\), the config says '
               r'\(4, 16\); layer_1/mlp/up_bias is missing')
    with pytest.raises(ValueError, match=message):
        native.save(tmp_path / 'model', CFG, wrong)
    native.save(tmp_path / 'model', CFG, params())
    (tmp_path / 'model' / 'config.json').write_text(CFG.with_experts(3).to_json())
    forget(tmp_path / 'model', 'config.json')
    with pytest.raises(ValueError, match=r'model: params and config disagree in 5 leaves: layer_0'):
        native.load(tmp_path / 'model')


def forget(path, name):
    """Delete a file's line from the manifest, as the message says."""
    noted = json.loads((path / 'manifest.json').read_text())
    del noted['folder'][name]
    (path / 'manifest.json').write_text(json.dumps(noted))


def flip(data):
    return data[:len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1:]


@pytest.mark.parametrize('damage', [flip, lambda data: data[:-1], lambda data: b''])
def test_damaged_arrays_are_noticed(tmp_path, damage):
    native.save(tmp_path / 'model', CFG, params())
    file = max(tmp_path.glob('model/params/**/d/*'), key=lambda path: path.stat().st_size)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=rf'model: params/.*{file.name} differs'):
        native.load(tmp_path / 'model')
    file.unlink()
    with pytest.raises(ValueError, match=rf'model: params/.*{file.name} is missing'):
        native.load(tmp_path / 'model')


def test_a_damaged_config_is_noticed(tmp_path):
    path = tmp_path / 'model'
    native.save(path, CFG, params())
    (path / 'config.json').write_text('{"vocab": 64')
    for read in (native.load, native.read_config):
        with pytest.raises(ValueError, match=r'model: config.json differs.*delete its line'):
            read(path)
    forget(path, 'config.json')
    with pytest.raises(ValueError, match=r'model/config.json: not a moe-jax config'):
        native.load(path)


@pytest.mark.parametrize('name', ['config.json', 'lineage.json', 'manifest.json', 'hf/config.json'])
def test_no_bit_of_any_file_flips_unseen(tmp_path, name):
    """topk=2 with one bit flipped is topk=3, and as good a config."""
    path = tmp_path / 'model'

    def beside(folder):
        (folder / 'hf').mkdir()
        (folder / 'hf/config.json').write_text('{"model_type": "mixtral"}')

    native.save(path, CFG, params(), beside=beside)
    content = (path / name).read_bytes()
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 1
        (path / name).write_bytes(damaged)
        with pytest.raises(ValueError, match='model'):
            native.load(path)
    (path / name).write_bytes(content)
    (path / 'plan.npz').write_bytes(b'added later')
    native.load(path)


def test_a_manifest_of_the_arrays_alone_still_opens(tmp_path):
    path = tmp_path / 'model'
    native.save(path, CFG, params())
    (path / 'manifest.json').write_text(json.dumps(digests(path / 'params')))
    assert native.load(path)[0] == CFG
    file = max(path.glob('params/**/d/*'), key=lambda path: path.stat().st_size)
    file.write_bytes(flip(file.read_bytes()))
    with pytest.raises(ValueError, match=f'{file.name} differs'):
        native.load(path)


def test_a_config_that_is_a_link_out_of_the_folder_is_refused(tmp_path):
    path = tmp_path / 'model'
    native.save(path, CFG, params())
    (path / 'config.json').rename(tmp_path / 'elsewhere.json')
    (path / 'config.json').symlink_to(tmp_path / 'elsewhere.json')
    with pytest.raises(ValueError, match='leads out of the folder'):
        native.load(path)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    native.save(tmp_path / 'model', CFG, params())
    usage = shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(DiskFull, match=r'needs 1,\d+,\d+ bytes and .* has 1,000 free'):
        native.save(tmp_path / 'model', CFG, params(), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ['model']
    assert_equal(native.load(tmp_path / 'model')[1], params())


def test_a_failed_save_leaves_nothing(tmp_path):
    with pytest.raises(TypeError, match='not JSON serializable'):
        native.save(tmp_path / 'model', CFG, params(), {'stats': object()})
    assert list(tmp_path.iterdir()) == []
