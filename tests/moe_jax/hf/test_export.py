"""What we write: held against the bytes of the source, and against transformers in torch."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import moe_jax
import prune
from moe_jax.base.tree import leaves_with_paths
from moe_jax.families import FAMILIES
from moe_jax.hf import layout
from prune.experts.keep import keep
from prune.plans.plan import Plan
from tests import matrix
from tests.moe_jax.hf import peer, tiny


def on_disk(folder):
    """Every tensor of a folder, by the library's own reader."""
    return {name: tensor for file in sorted(folder.glob('*.safetensors'))
            for name, tensor in load_file(file).items()}


def assert_same_tensors(found, exact):
    assert found.keys() == exact.keys()
    for name, tensor in exact.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert found[name].tobytes() == tensor.tobytes(), name


def half(cfg):
    """Ids to keep in each MoE layer: about half, scattered, equally many of each router group."""
    kept = {}
    for i in cfg.moe_layers:
        each = cfg.experts[i] // cfg.groups
        least = max(2 if cfg.groups > 1 else 1, -(-cfg.topk // cfg.groups_used))
        some = np.random.default_rng(i).permutation(each)[:max(least, each // 2)]
        kept[i] = np.sort(np.concatenate([some + g * each for g in range(cfg.groups)]))
    return kept


def dropped(cfg, params, kept):
    """Our pruned model that keeps the ids of each layer."""
    plan = Plan(
        method='by hand', experts=cfg.experts, width=cfg.width, expert_hidden=cfg.expert_hidden,
        layers={i: keep(ids, cfg.experts[i]) for i, ids in kept.items()},
    )
    return prune.apply(params, cfg, plan)


def sliced(raw, tensors, kept):
    """The same pruning done on the names and arrays of the source, without our layouts.

    A tensor of an expert is renumbered or left out; any other tensor of a MoE layer whose first
    axis is as long as the experts are many, and that is a router's or the experts', is indexed.
    """
    out = {}
    for name, tensor in tensors.items():
        parts = name.split('.')
        layer = int(parts[2]) if parts[:2] == ['model', 'layers'] else None
        if layer not in kept:
            out[name] = tensor
        elif 'experts' in parts and parts[parts.index('experts') + 1].isdigit():
            at = parts.index('experts') + 1
            where = np.flatnonzero(kept[layer] == int(parts[at]))
            if len(where):
                out['.'.join([*parts[:at], str(where[0]), *parts[at + 1:]])] = tensor
        elif any(word in name for word in (
                'mlp.gate.', '.router.', 'block_sparse_moe', 'mlp.experts.')):
            out[name] = tensor[kept[layer]]
        else:
            out[name] = tensor
    return out


@pytest.mark.parametrize(('family', 'variant'), matrix.rows(tiny.CASES, tiny.FIRST))
def test_keep_all_is_the_identity(family, variant, folder_of, loaded, tmp_path):
    cfg, params = loaded(family, variant)
    moe_jax.export_hf(tmp_path / 'out', cfg, params, like=folder_of(family, variant))
    assert_same_tensors(on_disk(tmp_path / 'out'), on_disk(folder_of(family, variant)))
    raw = json.loads((tmp_path / 'out/config.json').read_text())
    assert raw == tiny.config(family, variant)


@pytest.mark.parametrize(('family', 'variant'), matrix.rows(tiny.CASES, tiny.FIRST))
def test_a_pruned_folder_is_a_slice_of_the_source_and_torch_agrees(
        family, variant, folder_of, loaded, tmp_path):
    cfg, params = loaded(family, variant)
    kept = half(cfg)
    small_cfg, small = dropped(cfg, params, kept)[::-1]
    moe_jax.export_hf(tmp_path / 'out', small_cfg, small, like=folder_of(family, variant))
    raw = tiny.config(family, variant)
    assert_same_tensors(on_disk(tmp_path / 'out'), sliced(raw, tiny.tensors(raw), kept))
    pytest.importorskip('torch')
    exact, _ = peer.logits(tmp_path / 'out', mask=tiny.MASK)
    run = jax.jit(moe_jax.apply, static_argnums=0)
    found = run(small_cfg, small, tiny.TOKENS.astype(np.int32), tiny.MASK.astype(np.int32))
    real = tiny.MASK > 0
    np.testing.assert_allclose(np.asarray(found)[real], exact[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize(('family', 'variant'), [
    ('mixtral', 'grouped'), ('granitemoe', 'multipliers'), ('gpt_oss', 'alternating'),
    ('deepseek_v3', 'groups')])
def test_bfloat16_in_several_files_is_the_identity_too(family, variant, folder_of, tmp_path):
    source = folder_of(family, variant, dtype='bfloat16', shards=3)
    cfg, params = moe_jax.load(source)
    moe_jax.export_hf(tmp_path / 'out', cfg, params, like=source, shard_bytes=20_000)
    assert len(list((tmp_path / 'out').glob('model-*-of-*.safetensors'))) > 1
    assert_same_tensors(on_disk(tmp_path / 'out'), on_disk(source))


@pytest.mark.parametrize('family', FAMILIES)
def test_every_layout_of_a_family_loads_alike(family, loaded, folder_of, tmp_path):
    """Fused experts, as transformers 5 holds them in memory, and one tensor for each expert."""
    variant = next(iter(tiny.VARIANTS[family]))
    cfg, params = loaded(family, variant)
    slots = FAMILIES[family].slots
    paths = {s.path for s in slots if sum(o.path == s.path for o in slots) > 1}
    if not any('experts' in path for path in paths):
        pytest.skip('one layout only')
    found = on_disk(folder_of(family, variant))
    leaves = layout.leaves(cfg, FAMILIES[family])
    by_path = dict(leaves_with_paths(params))
    for leaf in leaves:
        others = FAMILIES[family].candidates(leaf.path)[1:]
        if not others or 'moe/' not in leaf.path:
            continue
        for name in leaf.names:
            found.pop(name, None)
        layer = int(leaf.path.split('/')[0].removeprefix('layer_'))
        name = others[-1].name.format(l=layer)
        tensor = found.setdefault(name, np.empty(others[-1].disk_shape(leaf.shape), np.float32))
        others[-1].to_disk(np.asarray(by_path[leaf.path]), tensor)
    tiny.write_tensors(tmp_path, found)
    raw = (folder_of(family, variant) / 'config.json').read_bytes()
    (tmp_path / 'config.json').write_bytes(raw)
    _, again = moe_jax.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again, params)
