"""Assignments against scipy and brute force: as good in every case, however they were sped up."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from prune.similarity import align, assignment

N = 150


def total(profit, order):
    """The profit of an order, summed in float64."""
    assert sorted(np.asarray(order).tolist()) == list(range(len(profit)))
    return profit[np.arange(len(profit)), order].astype(np.float64).sum()


def units(seed, count=N, width=40):
    rng = np.random.default_rng(seed)
    return rng, rng.normal(size=(count, width)), rng.normal(size=(count, width))


def unrelated(seed):
    _, a, b = units(seed)
    return a @ b.T


def common_direction(seed):
    rng, a, b = units(seed)
    shared = rng.normal(size=40)
    share = np.abs(rng.normal(size=(2, N, 1)))
    return (a + share[0] * shared) @ (b + share[1] * shared).T


def heavy_tails(seed):
    rng, a, b = units(seed)
    scale = np.exp(2 * rng.normal(size=(2, N, 1)))
    return (scale[0] * a) @ (scale[1] * b).T


def low_rank(seed):
    _, a, b = units(seed, width=2)
    return a @ b.T


def outer(seed):
    return -np.outer(np.arange(N), np.arange(N)) / N


def half_dead(seed):
    _, a, b = units(seed)
    a[::2], b[1::2] = 0, 0
    return a @ b.T


def integers(seed):
    return np.random.default_rng(seed).integers(0, 5, (N, N)).astype(float)


def constant(seed):
    return np.full((N, N), 3.0)


HARD = [unrelated, common_direction, heavy_tails, low_rank, outer, half_dead, integers, constant]


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('make', HARD)
def test_no_assignment_is_better(make, seed):
    profit = make(seed).astype(np.float32)
    best = total(profit, linear_sum_assignment(profit, maximize=True)[1])
    found = total(profit, assignment.assign(profit))
    np.testing.assert_allclose(found, best, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize('factor', [1e-42, 1e-33, 1e-10, 1e10, 1e33])
def test_scale_does_not_matter(factor):
    profit = (unrelated(0) * factor).astype(np.float32)
    with np.errstate(all='raise', under='ignore'):
        found = assignment.assign(profit)
    best = total(profit, linear_sum_assignment(profit, maximize=True)[1])
    np.testing.assert_allclose(total(profit, found), best, rtol=1e-12)


@pytest.mark.parametrize('seed', range(20))
def test_small_ones_by_brute_force(seed):
    profit = np.random.default_rng(seed).normal(size=(6, 6)).astype(np.float32)
    best = max(total(profit, list(order)) for order in itertools.permutations(range(6)))
    np.testing.assert_allclose(total(profit, assignment.assign(profit)), best, rtol=1e-12)
    assert assignment.assign(profit[:1, :1]).tolist() == [0]


@pytest.mark.parametrize('noise', [0, 0.1, 1, 3, 10])
@pytest.mark.parametrize('seed', range(2))
def test_reordered_units_with_noise(seed, noise):
    rng, a, b = units(seed)
    planted = rng.permutation(N)
    profit = (a @ (a[planted] + noise * b).T).astype(np.float32)
    found = assignment.assign(profit)
    best = total(profit, linear_sum_assignment(profit, maximize=True)[1])
    np.testing.assert_allclose(total(profit, found), best, rtol=1e-12)
    if noise <= 0.1:
        np.testing.assert_array_equal(planted[found], np.arange(N))


def test_where_every_row_has_a_best_column_nothing_is_solved(monkeypatch):
    rng, a, _ = units(0)
    profit = (a @ a[rng.permutation(N)].T).astype(np.float32)
    want = linear_sum_assignment(profit, maximize=True)[1]
    monkeypatch.setattr(assignment, 'linear_sum_assignment', None)
    np.testing.assert_array_equal(assignment.assign(profit), want)


def test_prices_are_nearly_optimal():
    """Weak duality: with v, the least feasible u bounds the optimum, here closely."""
    for make in (unrelated, common_direction, low_rank):
        profit = make(1).astype(np.float32)
        best = total(profit, linear_sum_assignment(profit, maximize=True)[1])
        _, v = assignment.prices(profit)
        bound = (profit - v).max(axis=1).astype(np.float64).sum() + v.astype(np.float64).sum()
        assert best - 1e-3 <= bound <= best + 0.01 * abs(best)
        without = profit.max(axis=1).astype(np.float64).sum()
        assert bound - best < 0.2 * (without - best)


def experts(seed, dtype=np.float32, count=5, width=6, hidden=30):
    rng = np.random.default_rng(seed)
    shapes = {'gate': (width, hidden), 'up': (width, hidden), 'down': (hidden, width),
              'up_bias': (hidden,), 'down_bias': (width,)}
    return {n: jnp.asarray(rng.normal(size=(count, *s)), dtype) for n, s in shapes.items()}


@pytest.mark.parametrize('dtype', [np.float32, jnp.bfloat16])
def test_alignment_is_exact_and_threads_do_not_change_it(monkeypatch, dtype):
    drawn = experts(0, dtype)
    reference_of = np.array([0, 0, 1, 2, 0])
    perms = align.permutations(drawn, reference_of)
    host = {n: np.asarray(leaf).astype(np.float64) for n, leaf in drawn.items()}
    for e, r in enumerate(reference_of):
        profit = sum(host[n][r].T @ host[n][e] for n in ('gate', 'up'))
        profit += host['down'][r] @ host['down'][e].T
        profit += np.outer(host['up_bias'][r], host['up_bias'][e])
        want = np.arange(30) if e == r else linear_sum_assignment(profit, maximize=True)[1]
        np.testing.assert_array_equal(perms[e], want)
    for threads in (1, 3, 7):
        monkeypatch.setattr(align, '_threads', lambda experts, threads=threads: threads)
        np.testing.assert_array_equal(align.permutations(drawn, reference_of), perms)


@pytest.mark.parametrize('bad', [np.nan, np.inf, 1e30])
def test_weights_that_cannot_be_multiplied_are_named(bad):
    drawn = experts(1)
    drawn['up'] = drawn['up'].at[3].set(bad) if bad != 1e30 else drawn['up'] * bad
    with pytest.raises(ValueError, match=r'experts [13] and 0 cannot be aligned'):
        align.permutations(drawn, np.zeros(5, int))


def test_threads_stay_within_the_memory_of_the_experts(monkeypatch):
    monkeypatch.setattr(align.os, 'cpu_count', lambda: 64)
    leaves = {'up': np.zeros((128, 8, 32), np.float32), 'down': np.zeros((128, 32, 8), np.float32)}
    assert align._threads(leaves) == 128 * 2 * 8 * 32 * 4 // (16 * 32**2)
    assert align._threads({n: leaf[:1] for n, leaf in leaves.items()}) == 1


@pytest.mark.parametrize('shape', [(3, 4), (4, 3), (4,), (2, 3, 3)])
def test_what_is_not_square_is_refused(shape):
    with pytest.raises(ValueError, match=r'profit has shape .*must be \[n, n\]'):
        assignment.assign(np.ones(shape, np.float32))
