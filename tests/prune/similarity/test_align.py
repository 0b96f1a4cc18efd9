"""Alignment against brute force, and against permutations that were planted."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.layers.ffn import Ffn, gelu
from prune.similarity import align


def make_experts(seed, count=3, width=4, hidden=5, **leaves):
    rng = np.random.default_rng(seed)
    shapes = {'up': (width, hidden), 'up_bias': (hidden,), 'down': (hidden, width),
              'down_bias': (width,)} | leaves
    return {n: rng.normal(size=(count, *s)).astype(np.float32) for n, s in shapes.items()}


def profit_of(experts, reference, expert, order):
    """<reference, expert reordered>, leaf by leaf, with plain indexing."""
    total = (experts['up'][reference] * experts['up'][expert][:, order]).sum()
    total += (experts['up_bias'][reference] * experts['up_bias'][expert][order]).sum()
    total += (experts['down'][reference] * experts['down'][expert][order]).sum()
    if 'gate' in experts:
        total += (experts['gate'][reference] * experts['gate'][expert][:, order]).sum()
    return float(total)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('leaves', [{}, {'gate': (4, 5)}], ids=['plain', 'gated'])
def test_no_other_order_is_better(seed, leaves):
    experts = make_experts(seed, **leaves)
    perms = align.permutations(experts, np.array([0, 0, 1]))
    assert perms[0].tolist() == [0, 1, 2, 3, 4]
    for expert, reference in ((1, 0), (2, 1)):
        best = max(
            profit_of(experts, reference, expert, list(order))
            for order in itertools.permutations(range(5))
        )
        found = profit_of(experts, reference, expert, perms[expert])
        np.testing.assert_allclose(found, best, rtol=1e-5)


@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16])
@pytest.mark.parametrize('seed', range(3))
def test_planted_permutations_are_undone_exactly(seed, dtype):
    one = make_experts(seed, count=1, width=8, hidden=24)
    experts = {n: jnp.asarray(np.repeat(leaf, 4, axis=0), dtype) for n, leaf in one.items()}
    rng = np.random.default_rng(seed)
    planted = np.stack([np.arange(24)] + [rng.permutation(24) for _ in range(3)])
    shuffled = align.permute(experts, planted)
    perms = align.permutations(shuffled, np.zeros(4, int))
    np.testing.assert_array_equal(np.take_along_axis(planted, perms, axis=1), [np.arange(24)] * 4)
    restored = align.permute(shuffled, perms)
    for name, leaf in experts.items():
        np.testing.assert_array_equal(restored[name], leaf)
        assert restored[name].dtype == leaf.dtype


def test_hidden_biases_alone_decide_where_matrices_are_silent():
    experts = make_experts(0, count=2)
    experts |= {'up': np.zeros_like(experts['up']), 'down': np.zeros_like(experts['down'])}
    experts['up_bias'] = np.array([[1, 2, 3, 4, 5], [5, 1, 4, 2, 3]], np.float32)
    perms = align.permutations(experts, np.array([0, 0]))
    assert experts['up_bias'][1][perms[1]].tolist() == [1, 2, 3, 4, 5]


def test_reordering_hidden_units_keeps_the_function():
    experts = make_experts(1)
    perms = np.stack([np.random.default_rng(s).permutation(5) for s in range(3)])
    x = jnp.asarray(np.random.default_rng(9).normal(size=(7, 4)), jnp.float32)
    every = jax.vmap(Ffn(gelu), in_axes=(0, None))
    before = every(jax.tree.map(jnp.asarray, experts), x)
    moved = align.permute(experts, perms)
    np.testing.assert_allclose(every(moved, x), before, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(moved['down_bias'], experts['down_bias'])
    assert not np.array_equal(moved['up_bias'], experts['up_bias'])


def test_inactive_experts_keep_their_order():
    perms = align.permutations(make_experts(2), np.zeros(3, int), np.array([True, False, True]))
    assert perms[1].tolist() == [0, 1, 2, 3, 4]
    assert perms[2].tolist() != [0, 1, 2, 3, 4]


def test_an_unknown_leaf_is_refused_by_name():
    experts = make_experts(0) | {'scale': np.ones((3, 5), np.float32)}
    with pytest.raises(ValueError, match='moe/experts/scale'):
        align.permutations(experts, np.zeros(3, int))
    with pytest.raises(ValueError, match='moe/experts/scale'):
        align.permute(experts, np.zeros((3, 5), int))
