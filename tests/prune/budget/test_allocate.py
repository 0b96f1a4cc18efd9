"""Budgets over layers, against every allocation there is."""

import itertools

import numpy as np
import pytest

from prune.budget.allocate import allocate


def by_force(curves, price, limit):
    """The best allocation, tried one by one; ties as `allocate` says."""
    layers = sorted(curves)
    best = None
    for counts in itertools.product(*(sorted(curves[i]) for i in layers)):
        spent = sum(n * price[i] for i, n in zip(layers, counts, strict=True))
        total = sum(curves[i][n] for i, n in zip(layers, counts, strict=True))
        key = (total, spent, [-n for n in reversed(counts)])
        if spent <= limit and (best is None or key < best[0]):
            best = key, dict(zip(layers, counts, strict=True))
    return best[1]


@pytest.mark.parametrize('seed', range(8))
def test_least_of_all_allocations(seed):
    """Errors of any shape, floors of any height; whole numbers, so that there are many ties."""
    rng = np.random.default_rng(seed)
    curves = {}
    for i in rng.permutation([0, 2, 3, 7]):
        counts = np.sort(rng.permutation(np.arange(1, 7))[:rng.integers(1, 6)])
        curves[int(i)] = {int(n): float(rng.integers(0, 6)) for n in counts}
    floors = sum(min(curve) for curve in curves.values())
    for total in range(floors, 26):
        got = allocate(curves, total=total)
        assert got == by_force(curves, dict.fromkeys(curves, 1), total)
        assert list(got) == sorted(curves) and type(got[0]) is int
    price = {i: int(rng.integers(1, 5)) * 12 for i in curves}
    least = sum(min(curve) * price[i] for i, curve in curves.items())
    for budget in range(least, least + 400, 7):
        assert allocate(curves, cost=price, budget=budget) == by_force(curves, price, budget)


def test_a_falling_convex_curve_is_spent_where_it_falls_most():
    curves = {0: {1: 9.0, 2: 5.0, 3: 4.0}, 1: {1: 3.0, 2: 2.5, 3: 2.4}, 2: {1: 7.0, 2: 1.0, 3: .9}}
    assert allocate(curves, total=3) == {0: 1, 1: 1, 2: 1}
    assert allocate(curves, total=4) == {0: 1, 1: 1, 2: 2}
    assert allocate(curves, total=5) == {0: 2, 1: 1, 2: 2}
    assert allocate(curves, total=100) == {0: 3, 1: 3, 2: 3}


def test_a_greedy_spender_would_miss_this():
    """The first expert more of layer 0 brings nothing, the second brings the most."""
    curves = {0: {1: 10.0, 2: 10.0, 3: 0.0}, 1: {1: 5.0, 2: 4.0, 3: 3.0}}
    assert allocate(curves, total=4) == {0: 3, 1: 1}


def test_what_brings_nothing_is_not_bought():
    curves = {0: {2: 1.0, 4: 1.0}, 1: {2: 3.0, 4: 2.0}}
    assert allocate(curves, total=8) == {0: 2, 1: 4}
    assert allocate({0: {1: 1.0, 2: 0.0}, 1: {1: 1.0, 2: 0.0}}, total=3) == {0: 1, 1: 2}


def test_large_costs_need_no_grid():
    """48 layers of 128 experts of some 10^9 bytes, and one layer of another size."""
    curves = {i: {n: (i + 1) / n for n in range(8, 129, 8)} for i in range(48)}
    price = dict.fromkeys(range(48), 1_207_959_552) | {0: 2_415_919_104}
    budget = 48 * 32 * 1_207_959_552
    got = allocate(curves, cost=price, budget=budget)
    spent = sum(n * price[i] for i, n in got.items())
    assert spent <= budget < spent + 16 * 1_207_959_552
    assert all(got[i] <= got[i + 1] for i in range(1, 47)) and got[0] == 8


def test_budgets_that_cannot_be():
    curves = {0: {2: 1.0, 4: 0.0}, 3: {4: 1.0, 6: 0.5}}
    with pytest.raises(ValueError, match=r'total=5 is too small.*\[2, 4\], take 6'):
        allocate(curves, total=5)
    with pytest.raises(ValueError, match=r'budget=1,399 is too small.*take 1,400'):
        allocate(curves, cost={0: 100, 3: 300}, budget=1399)
    assert allocate(curves, cost={0: 100, 3: 300}, budget=1400) == {0: 2, 3: 4}


@pytest.mark.parametrize(('given', 'message'), [
    ({}, 'give either total='),
    ({'total': 3, 'budget': 3, 'cost': {0: 1}}, 'give either total='),
    ({'budget': 3}, 'give either total='),
    ({'total': 3, 'cost': {0: 1}}, 'give either total='),
    ({'total': 2.5}, 'total=2.5: must be an integer'),
    ({'budget': 9, 'cost': {1: 1}}, r'cost has layers \[1\], curves \[0\]'),
    ({'budget': 9, 'cost': {0: 0}}, 'at least 1'),
])
def test_requests_that_make_no_sense(given, message):
    with pytest.raises(ValueError, match=message):
        allocate({0: {1: 1.0, 2: 0.0}}, **given)


def test_curves_that_make_no_sense():
    for curves in ({0: {}}, {0: {1: np.nan}}, {0: {-1: 1.0}}):
        with pytest.raises(ValueError, match='the curve of layer 0'):
            allocate(curves, total=3)
    with pytest.raises(ValueError, match='no layers'):
        allocate({}, total=3)
