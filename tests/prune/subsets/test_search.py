"""Searches for the set to keep, against every set tried in loops, and what they promise."""

import itertools
import math

import numpy as np
import pytest

from prune.experts.methods import genetic, greedy, naee
from prune.subsets import error
from prune.subsets import search as subsets
from tests.prune.subsets import reconstruct_loops as loops

PLAIN = {'gate': 'softmax_topk_renorm'}
FORMS = {
    'K=2': PLAIN,
    'K=1': {'gate': 'softmax_topk', 'topk': 1},
    'sigmoid with correction': {'gate': 'sigmoid_topk_renorm', 'correction': True},
    'groups': {'gate': 'softmax_topk', 'groups': 3, 'groups_used': 2},
}
SEARCHES = {'naee': naee.choose, 'greedy': greedy.choose, 'genetic': genetic.choose}


@pytest.fixture(scope='module')
def case():
    """case(seed, ...): config, parameters and reservoir of a layer of 6 experts."""
    known = {}

    def make(seed=0, **fields):
        key = seed, tuple(sorted(fields.items()))
        if key not in known:
            cfg = loops.config(**fields)
            params = loops.layer(cfg, seed)
            known[key] = cfg, params, loops.reservoir(cfg, params, seed=seed)
        return known[key]

    return make


def sample(cfg, params, seen):
    return error.sample_of(seen, params['layer_0']['moe'], cfg)


def best(cfg, params, seen, count):
    """Errors of all sets by loops, and the ids of the best."""
    sets = loops.sets(6, count, cfg.groups)
    errors = [loops.error(cfg, params, seen, s) for s in sets]
    return dict(zip(sets, errors, strict=True)), list(sets[int(np.argmin(errors))])


@pytest.mark.parametrize('form', list(FORMS))
def test_the_best_of_all_sets(case, form):
    model = cfg, params, seen = case(1, **FORMS[form])
    for count in (3,) if cfg.groups > 1 else (1, 3, 5):
        errors, want = best(*model, count)
        got = naee.choose({0: seen}, params, cfg, {0: count})[0]
        assert got.tolist() == want
        few = greedy.choose({0: seen}, params, cfg, {0: count})[0]
        bred = genetic.choose({0: seen}, params, cfg, {0: count}, population=6, generations=4)[0]
        start = subsets.highest(genetic.gate_mass(seen)[None], count, cfg.groups)[0]
        slack = 1 + 1e-5
        assert errors[tuple(want)] <= errors[tuple(few.tolist())] * slack
        assert errors[tuple(want)] <= errors[tuple(bred.tolist())] * slack
        assert errors[tuple(bred.tolist())] <= errors[tuple(np.flatnonzero(start))] * slack


def test_the_released_loss_depends_on_the_batch(case):
    """Sums of norms that are not squared, over batches of tokens in their order."""
    differ = 0
    for seed in range(4):
        cfg, params, seen = case(seed, **PLAIN)
        sets = loops.sets(6, 3)
        tokens = np.array([loops.token_errors(cfg, params, seen, s) for s in sets])
        for batch in (1, 9, 24):
            values = sum(np.sqrt(tokens[:, i:i + batch].sum(axis=1)) for i in range(0, 24, batch))
            got = naee.choose({0: seen}, params, cfg, {0: 3}, loss='batch_norm', batch=batch)[0]
            assert tuple(got.tolist()) == sets[int(np.argmin(values))]
            differ += int(np.argmin(values) != np.argmin(tokens.sum(axis=1)))
            assert batch < 24 or np.argmin(values) == np.argmin(tokens.sum(axis=1))
    assert differ


def test_too_many_sets_are_refused():
    cfg = loops.config(experts=64)
    with pytest.raises(ValueError, match=r"layer 0: there are 488,526,937,079,580 ways .*'greedy'"):
        naee.choose({}, {}, cfg, {0: 16})
    with pytest.raises(ValueError, match="more than most=19; search with method 'greedy' or 'gen"):
        naee.choose({}, {}, loops.config(), {0: 3}, most=19)
    with pytest.raises(ValueError, match='batch=0'):
        naee.choose({}, {}, loops.config(), {0: 3}, batch=0)


@pytest.mark.parametrize('name', list(SEARCHES))
def test_experts_that_nothing_tells_apart(name):
    """Experts 1, 2 and 5 are one and the same, and 0, 3 and 4 too: one of each, the first."""
    cfg = loops.config(topk=1, gate='topk_softmax')
    params = loops.layer(cfg)
    twins = [0, 1, 1, 0, 0, 1]
    moe = params['layer_0']['moe']
    for part in moe.values():
        for leaf, value in part.items():
            part[leaf] = value[twins]
    seen = {0: loops.reservoir(cfg, params)}
    assert SEARCHES[name](seen, params, cfg, {0: 2})[0].tolist() == [0, 1]
    assert SEARCHES[name](seen, params, cfg, {0: 6})[0].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize('form', list(FORMS))
@pytest.mark.parametrize('name', list(SEARCHES))
def test_renaming_experts_renames_the_choice(case, name, form):
    cfg, params, seen = case(2, **FORMS[form])
    size = 6 // cfg.groups
    rng = np.random.default_rng(5)
    order = np.concatenate([g * size + rng.permutation(size) for g in range(cfg.groups)])
    before = SEARCHES[name]({0: seen}, params, cfg, {0: 3})[0]
    again, moved = loops.renamed(params, seen, order)
    after = SEARCHES[name]({0: moved}, again, cfg, {0: 3})[0]
    assert sorted(order[after]) == before.tolist()


@pytest.mark.parametrize('form', list(FORMS))
def test_elimination_drops_what_is_missed_the_least(case, form):
    """Step by step by loops; with groups, one of each group before a second one of any."""
    cfg, params, seen = case(3, **FORMS[form])
    left, size = list(range(6)), 6 // cfg.groups
    for _ in range(3):
        held = [sum(e // size == g for e in left) for g in range(cfg.groups)]
        allowed = [e for e in left if held[e // size] == max(held)]
        errors = [loops.error_left(cfg, params, seen, [k for k in left if k != e])
                  for e in allowed]
        left.remove(allowed[int(np.argmin(errors))])
        if len(left) % cfg.groups == 0:
            got = greedy.choose({0: seen}, params, cfg, {0: len(left)})[0]
            assert got.tolist() == left


def test_a_stand_in_is_missed_only_when_both_are_gone():
    """Two equal experts that carry most of the output: no ranking of single losses keeps just one.
    """
    cfg = loops.config(topk=1, gate='topk_softmax')
    params = loops.layer(cfg)
    moe = params['layer_0']['moe']
    for leaf in moe['experts'].values():
        leaf[4] = leaf[1]
        leaf[[0, 2, 3, 5]] *= 0.1
        leaf[[1, 4]] *= 3
    moe['router']['kernel'][4] = moe['router']['kernel'][1] + 0.01
    seen = {0: loops.reservoir(cfg, params)}
    for search in SEARCHES.values():
        assert len({1, 4} & set(search(seen, params, cfg, {0: 4})[0].tolist())) == 1


def test_all_sets_in_order():
    assert subsets.every(6, 3).tolist() == [list(s) for s in itertools.combinations(range(6), 3)]
    for groups, count in ((2, 4), (3, 3), (3, 6)):
        found = subsets.every(6, count, groups)
        assert found.tolist() == [list(s) for s in loops.sets(6, count, groups)]
        assert len(found) == subsets.how_many(6, count, groups)
    assert subsets.how_many(16, 8) == 12870 == len(subsets.every(16, 8))


@pytest.mark.parametrize('groups', [1, 3])
def test_children_and_swaps(groups):
    rng = np.random.default_rng(0)
    a, b = (subsets.highest(rng.random((200, 12)), 6, groups) for _ in range(2))
    child = subsets.crossed(a, b, groups, rng)
    assert (child >= (a & b)).all() and (child <= (a | b)).all()
    changed = subsets.swapped(child, groups, rng)
    assert ((child ^ changed).sum(axis=1) == 2).all()
    for masks in (a, child, changed):
        assert (masks.reshape(200, groups, -1).sum(axis=2) == 6 // groups).all()
    moved = (child ^ changed).reshape(200, groups, -1).sum(axis=2)
    assert (moved.max(axis=1) == 2).all() and (moved.sum(axis=0) > 0).all()


def test_evolution_finds_a_planted_set_and_asks_once():
    """Errors are how many of the planted experts are missing: 1 of 38,760 sets has none."""
    want, asked = np.isin(np.arange(20), [1, 2, 8, 11, 17, 19]), []

    def errors(masks):
        asked.extend(mask.tobytes() for mask in masks)
        return (want & ~masks).sum(axis=1).astype(float)

    seeds = np.isin(np.arange(20), range(6))[None]
    found = subsets.evolve(errors, seeds, groups=1, population=30, generations=30,
                           rng=np.random.default_rng(0))
    assert (found.masks[0] == want).all() and found.errors[0] == 0
    assert len(asked) == len(set(asked)) <= 30 * 31 < math.comb(20, 6)
    assert (np.diff(found.errors) >= 0).all()
    lazy = subsets.evolve(errors, seeds, groups=1, population=1, generations=0,
                          rng=np.random.default_rng(0))
    assert (lazy.masks == seeds).all()


def test_a_genetic_search_is_its_seed(case):
    cfg, params, seen = case(0, **PLAIN)
    few = {'population': 2, 'generations': 1}
    runs = [genetic.choose({0: seen}, params, cfg, {0: 3}, seed=7, **few)[0] for _ in range(2)]
    np.testing.assert_array_equal(*runs)
    with pytest.raises(ValueError, match='population=0'):
        genetic.choose({0: seen}, params, cfg, {0: 3}, population=0)
