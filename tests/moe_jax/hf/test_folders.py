"""Exports that are refused, interrupted or exported again; commands; documents made of tables."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import moe_jax
import prune
from moe_jax.cli import convert, main
from moe_jax.cli.job import Job
from moe_jax.cli.prune import Sizes, prune_model
from moe_jax.families import describe
from moe_jax.hf import writer
from moe_jax.storage import folder as storage
from moe_jax.storage.tokens import stop_ids
from prune.experts.common import Common
from prune.experts.keep import keep
from prune.plans.plan import Plan
from tests.moe_jax.hf import lexicon, tiny

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A checkpoint of Qwen3-MoE with a tokenizer, some code and a link out of the folder."""
    folder = tiny.write(tmp_path_factory.mktemp('folders') / 'source', 'qwen3_moe', 'wide heads')
    lexicon.write_tokenizer(folder)
    (folder / 'LICENSE').write_text('terms')
    (folder / 'tokenization_own.py').write_text('raise SystemExit')
    (folder / 'README.md').write_text('of the model that it was')
    return folder


@pytest.fixture(scope='module')
def model(source):
    return moe_jax.load(source)


def kept(cfg, params, *ids_of_layers):
    plan = Plan(method='by hand', experts=cfg.experts, width=cfg.width,
                expert_hidden=cfg.expert_hidden,
                layers={i: keep(np.array(ids), cfg.experts[i])
                        for i, ids in zip(cfg.moe_layers, ids_of_layers, strict=True)})
    return prune.apply(params, cfg, plan)[::-1]


def test_side_files_come_along_but_no_code(source, model, tmp_path):
    moe_jax.export_hf(tmp_path / 'out', *model, like=source, lineage={'why': 'test'})
    names = {file.name for file in (tmp_path / 'out').iterdir()}
    assert names == {'config.json', 'generation_config.json', 'tokenizer.json', 'LICENSE',
                     'tokenizer_config.json', 'model.safetensors', 'moe_jax.json'}
    note = json.loads((tmp_path / 'out/moe_jax.json').read_text())
    assert note['lineage'] == {'why': 'test'} and set(note['sha256']) == names - {
        'moe_jax.json', 'LICENSE'}


def test_a_link_to_a_file_elsewhere_is_not_copied(source, model, tmp_path):
    (tmp_path / 'secret').write_text('secret')
    copy = tmp_path / 'source'
    copy.mkdir()
    for file in source.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / 'tokenizer.json').unlink()
    (copy / 'tokenizer.json').symlink_to(tmp_path / 'secret')
    with pytest.raises(ValueError, match='leads out of the folder'):
        moe_jax.export_hf(tmp_path / 'out', *model, like=copy)
    assert not (tmp_path / 'out').exists()


def test_different_counts_are_refused_with_the_nearest_and_kept_natively(source, model, tmp_path):
    cfg, small = kept(*model, [0, 1, 3], [2, 3])
    with pytest.raises(ValueError, match=r'keep 2 to 3 experts.*keeps experts=2'):
        moe_jax.export_hf(tmp_path / 'out', cfg, small, like=source)
    assert list(tmp_path.iterdir()) == []
    moe_jax.save(tmp_path / 'native', cfg, small, like=source)
    again, params = moe_jax.load(tmp_path / 'native')
    assert again == cfg
    jax.tree.map(np.testing.assert_array_equal, params, small)


def test_an_alias_merge_and_a_foreign_form_are_refused(source, model, tmp_path, folder_of):
    cfg, params = model
    with pytest.raises(ValueError, match=r'form of `like`: .*qk_norm is .head., there .none.'):
        moe_jax.export_hf(tmp_path / 'out', cfg, params, like=folder_of('mixtral', 'grouped'))
    stats = moe_jax.observe(cfg, params, [{'tokens': tiny.TOKENS, 'mask': tiny.MASK > 0}])
    plan = prune.plan('m_smoe', stats, params, cfg, experts=2, router_init='alias')
    small, small_cfg = prune.apply(params, cfg, plan)
    with pytest.raises(ValueError, match='alias merge'):
        moe_jax.export_hf(tmp_path / 'out', small_cfg, small, like=source)


def test_what_exists_is_not_overwritten_unless_it_is_ours(source, model, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out/notes').write_text('mine')
    with pytest.raises(FileExistsError, match='not empty'):
        moe_jax.export_hf(tmp_path / 'out', *model, like=source)
    with pytest.raises(ValueError, match='not exported by moe-jax'):
        moe_jax.export_hf(tmp_path / 'out', *model, like=source, overwrite=True)
    moe_jax.export_hf(tmp_path / 'new', *model, like=source)
    moe_jax.export_hf(tmp_path / 'new', *model, like=source, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['new', 'out']


@pytest.mark.parametrize('step', ['write', 'compare'])
def test_an_interrupted_export_leaves_nothing(source, model, tmp_path, step):
    def stop(name, count):
        if name == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        moe_jax.export_hf(tmp_path / 'out', *model, like=source, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_lies_is_noticed_before_anything_appears(source, model, tmp_path, monkeypatch):
    honest = writer.write

    def flipped(path, tensors, progress=None):
        digest = honest(path, tensors, progress)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        return digest

    monkeypatch.setattr(writer, 'write', flipped)
    with pytest.raises(ValueError, match='reads back differently'):
        moe_jax.export_hf(tmp_path / 'out', *model, like=source)
    assert list(tmp_path.iterdir()) == []


def test_convert_there_and_back_is_the_identity(source, tmp_path, capsys):
    convert.convert(source, tmp_path / 'native', to='native')
    assert stop_ids(tmp_path / 'native') == (0,)
    convert.convert(tmp_path / 'native', tmp_path / 'back', to='hf')
    assert 'equal to the model in memory' in capsys.readouterr().out
    cfg, params = moe_jax.load(tmp_path / 'back')
    same_cfg, same = moe_jax.load(source)
    assert cfg == same_cfg
    jax.tree.map(np.testing.assert_array_equal, params, same)
    assert (tmp_path / 'back/model.safetensors').stat().st_size == (
        source / 'model.safetensors').stat().st_size


def test_a_cast_keeps_the_routers_float32(source):
    cfg, params = moe_jax.load(source, dtype='bfloat16')
    assert cfg.dtype == params['layer_0']['attn']['q'].dtype == 'bfloat16'
    assert params['layer_0']['moe']['router']['kernel'].dtype == 'float32'


def test_the_recipe_on_the_command_line(source, tmp_path, capsys):
    cfg, params = moe_jax.load(source)
    moe_jax.observe(cfg, params, [{'tokens': tiny.TOKENS, 'mask': tiny.MASK > 0}]).save(
        tmp_path / 'stats.npz')
    job = Job(method='frequency', out=tmp_path / 'small', stats=tmp_path / 'stats.npz', to='hf')
    prune_model(source, job, Sizes(experts=2), Common())
    assert 'equal to the model in memory' in capsys.readouterr().out
    assert moe_jax.load(tmp_path / 'small')[0].experts == (2, 2)
    assert json.loads((tmp_path / 'small/config.json').read_text())['num_experts'] == 2
    with pytest.raises(ValueError, match='cannot keep 1 experts'):
        prune_model(source, dataclasses.replace(job, out=tmp_path / 'none', stats=None),
                    Sizes(experts=1), Common())


def test_info_reads_headers_alone_and_says_what_does_not_fit(source, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['moe-jax', 'info', str(source)])
    main()
    assert 'qwen3_moe (Qwen3MoeForCausalLM)' in capsys.readouterr().out


def test_an_unknown_architecture_is_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / 'config.json').write_text('{"model_type": "llama"}')
    monkeypatch.setattr(sys, 'argv', ['moe-jax', 'info', str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr().err
    assert told.count('\n') == 1 and 'mixtral' in told and 'how to add one' in told


def test_the_page_of_families_is_made_of_the_tables():
    assert (ROOT / 'docs/families.md').read_text() == describe.markdown()


@pytest.mark.full
def test_each_device_of_a_mesh_reads_its_share(source, tmp_path):
    """In a process of its own, with four devices."""
    script = f'''
import jax, numpy as np, moe_jax
from moe_jax.base.sharding import make_mesh
mesh = make_mesh(expert=2, model=2)
cfg, params = moe_jax.load({str(source)!r}, mesh=mesh)
_, whole = moe_jax.load({str(source)!r})
jax.tree.map(np.testing.assert_array_equal, params, whole)
up = params['layer_0']['moe']['experts']['up']
assert up.sharding.spec == jax.sharding.PartitionSpec('expert', None, 'model'), up.sharding
assert {{s.data.shape for s in up.addressable_shards}} == {{(2, 24, 6)}}
half, alone = (moe_jax.load({str(source)!r}, dtype='float16', mesh=m)[1] for m in (mesh, None))
moe_jax.save({str(tmp_path / 'native')!r}, cfg, whole)
native = moe_jax.load({str(tmp_path / 'native')!r}, dtype='float16', mesh=mesh)[1]
jax.tree.map(np.testing.assert_array_equal, half, alone)
jax.tree.map(np.testing.assert_array_equal, native, alone)
cast = native['layer_0']['moe']['experts']['up']
assert cast.dtype == 'float16' and cast.sharding == up.sharding, cast.sharding
tokens = np.arange(8, dtype=np.int32)[None]
np.testing.assert_allclose(moe_jax.apply(cfg, params, tokens), moe_jax.apply(cfg, whole, tokens),
                           atol=1e-5)
'''
    flags = {'XLA_FLAGS': '--xla_force_host_platform_device_count=4', 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', script], env=os.environ | flags, check=False,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_decides_a_number_is_noted_at_the_export(source, model, tmp_path):
    """Of every file but weights, which are noted too: a flipped bit is as good a config."""
    out = tmp_path / 'out'
    moe_jax.export_hf(out, *model, like=source)
    noted = json.loads((out / 'moe_jax.json').read_text())['sha256']
    assert {'config.json', 'generation_config.json', 'model.safetensors'} <= set(noted)
    content = (out / 'config.json').read_bytes()
    for place in range(1, len(content), 13):
        damaged = bytearray(content)
        damaged[place] ^= 1
        (out / 'config.json').write_bytes(damaged)
        for read in (moe_jax.load, storage.config_of):
            with pytest.raises(ValueError, match=r'config\.json'):
                read(out)
    (out / 'config.json').write_bytes(content)
    (out / 'README.md').write_text('added later')
    moe_jax.load(out)
    (out / 'config.json').rename(tmp_path / 'elsewhere.json')
    (out / 'config.json').symlink_to(tmp_path / 'elsewhere.json')
    with pytest.raises(ValueError, match='leads out of the folder'):
        storage.config_of(out)
