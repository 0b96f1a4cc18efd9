"""A plan's file: nothing but plans is taken, however it was damaged or made."""

import io
import zipfile

import numpy as np
import pytest

from prune import LayerPlan, Plan

MIX = np.random.default_rng(0).dirichlet(np.ones(4), 2).astype(np.float32)
PLAN = Plan(
    method='by hand', experts=(4, 0, 4), width=8, expert_hidden=6, options={'seed': 3},
    layers={i: LayerPlan(mix=MIX, router=MIX, masks={'up': np.full((2, 6), i, np.uint8)},
                         notes={'zero_traffic': np.arange(2)}) for i in (0, 2)})


def same(a, b):
    return (a.method, a.experts, a.options) == (b.method, b.experts, b.options) and all(
        np.array_equal(a.layers[i].mix, b.layers[i].mix)
        and np.array_equal(a.layers[i].masks['up'], b.layers[i].masks['up']) for i in a.layers)


def test_no_damage_is_read_or_raises_anything_else(tmp_path):
    path = PLAN.save(tmp_path / 'plan.npz')
    whole = path.read_bytes()
    assert same(Plan.load(path), PLAN)
    taken = 0
    for trial in range(300):
        rng = np.random.default_rng(trial)
        content = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content[:rng.integers(len(content))] if trial % 3 == 0 else content)
        try:
            assert same(Plan.load(path), PLAN)  # bits that say nothing, such as a date
            taken += 1
        except ValueError as error:
            assert str(path) in str(error), trial
    assert taken < 150


@pytest.mark.parametrize('name', ['x.npy', '0/mix/more.npy', '1/mix.npy', '0/perms.npy'])
def test_an_array_that_is_too_large_or_of_no_plan_is_not_unpacked(tmp_path, name):
    path = PLAN.save(tmp_path / 'plan.npz')
    large = io.BytesIO()
    np.save(large, np.zeros(2**26, np.uint8))
    with zipfile.ZipFile(path, 'a', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, large.getvalue())
    assert path.stat().st_size < 2**18
    with pytest.raises(ValueError, match=r'plan\.npz: not a plan of moe-jax.*(no array|at most)'):
        Plan.load(path)
