"""What all methods that group experts share, and HC-SMoE and REAM by brute force."""

import warnings

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from prune.experts.methods import diversify, hc_smoe, ream, stun, sub_moe
from prune.plans.checks import check_groups
from prune.plans.plan import Plan
from tests.prune.experts import merging_case as case

METHODS = {
    'hc_smoe': (hc_smoe, {}), 'hc_smoe routed': (hc_smoe, {'by': 'routed', 'linkage': 'ward'}),
    'ream': (ream, {}), 'diversify': (diversify, {}),
    'diversify weights': (diversify, {'by': 'weights'}),
    'diversify aligned': (diversify, {'by': 'aligned_weights', 'align': 'first'}),
    'sub_moe': (sub_moe, {}), 'sub_moe routed': (sub_moe, {'by': 'routed'}),
    'stun': (stun, {'average_below': 0}), 'stun average': (stun, {'average_below': 8}),
    'stun coactivation': (stun, {'coactivation': True, 'lambda2': 0.01}),
}
FULL = {0: 8, 2: 6}


@pytest.fixture(scope='module')
def made():
    return case.make()


def made_by(name, params, stats, counts, groups=1, **options):
    module, own = METHODS[name]
    layers = module.plan(stats, params, case.config(groups), counts, **own | options)
    cfg = case.config()
    Plan(method=name, layers=layers, experts=cfg.experts, width=cfg.width,
         expert_hidden=cfg.expert_hidden)
    return layers


def same(a, b):
    for i in a:
        for field in ('mix', 'router', 'alias', 'perms'):
            x, y = getattr(a[i], field), getattr(b[i], field)
            assert (x is None) == (y is None) and (x is None or np.array_equal(x, y))


@pytest.mark.parametrize('name', list(METHODS))
def test_counts_are_met_and_plans_repeat(made, name):
    for counts in ({0: 4, 2: 3}, {0: 2, 2: 2}, {0: 7, 2: 2}):
        layers = made_by(name, *made, counts)
        assert sum(layer.after for layer in layers.values()) == sum(counts.values())
        if not name.startswith('stun'):
            assert {i: layer.after for i, layer in layers.items()} == counts
        same(layers, made_by(name, *made, counts))
        for layer in layers.values():
            assert (layer.mix >= 0).all()
            np.testing.assert_allclose(layer.mix.sum(axis=1), 1, rtol=1e-6)
            assert ((layer.mix > 0).sum(axis=0) <= 1).all()  # no expert in two groups


@pytest.mark.parametrize('name', list(METHODS))
def test_all_experts_kept_is_the_identity(made, name):
    for layer in made_by(name, *made, FULL).values():
        np.testing.assert_array_equal(layer.mix, np.eye(layer.before))
        np.testing.assert_array_equal(layer.router, np.eye(layer.before))
        assert layer.perms is None and layer.alias is None


@pytest.mark.parametrize('name', list(METHODS))
def test_one_expert_is_enough(made, name):
    for layer in made_by(name, *made, {0: 1, 2: 1}).values():
        assert layer.mix.shape == (1, layer.before)
        assert layer.alias is None or not layer.alias.any()


@pytest.mark.parametrize('name', list(METHODS))
def test_planted_groups_are_found(made, name):
    if name == 'ream':
        pytest.skip('its groups are grown from salient experts: see its own tests')
    for i, layer in made_by(name, *made, {0: 4, 2: 3}).items():
        assert adjusted_rand_score(layer.notes['labels'], case.LABELS[i]) == 1


@pytest.mark.parametrize('name', list(METHODS))
@pytest.mark.parametrize('seed', range(2))
def test_renaming_experts_renames_the_groups(name, seed):
    params, stats = case.make(seed, noise=0.3)
    order = np.random.default_rng(seed).permutation(8)
    other = case.renamed(params, order)
    seen = stats | {0: case.observe(other['layer_0']['moe'], stats[0]['x'])}
    counts = {0: 4, 2: 3}
    plain, moved = made_by(name, params, stats, counts), made_by(name, other, seen, counts)
    assert adjusted_rand_score(plain[0].notes['labels'][order], moved[0].notes['labels']) == 1
    same({2: plain[2]}, {2: moved[2]})


@pytest.mark.parametrize('name', list(METHODS))
def test_no_traffic_and_no_output_are_quiet(made, name):
    params, stats = made
    flat = dict(params.items())
    flat['layer_0'] = {'moe': {
        part: {n: np.zeros_like(leaf) for n, leaf in tree.items()}
        for part, tree in params['layer_0']['moe'].items()}}
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for weights in (params, flat):
            for counts in ({0: 3, 2: 2}, {0: 1, 2: 6}):
                layers = made_by(name, weights, case.silent(stats), counts)
                assert sum(layer.after for layer in layers.values()) == sum(counts.values())


@pytest.mark.parametrize('name', list(METHODS))
def test_tied_experts_fall_to_the_lowest(name):
    """All experts of a layer the same: exact counts, and the lower index where one is chosen."""
    params, stats = case.make(noise=0)
    one = case.renamed(params, np.zeros(8, int))
    seen = stats | {0: case.observe(one['layer_0']['moe'], stats[0]['x'])}
    layers = made_by(name, one, seen, {0: 5, 2: 3})
    assert sum(layer.after for layer in layers.values()) == 8
    same(layers, made_by(name, one, seen, {0: 5, 2: 3}))
    if name == 'stun':
        lowest = np.unique(layers[0].notes['labels'], return_index=True)[1]
        np.testing.assert_array_equal(layers[0].mix, np.eye(8)[np.sort(lowest)])


@pytest.mark.parametrize('name', list(METHODS))
def test_bfloat16_experts(made, name):
    params, stats = made
    plain = made_by(name, params, stats, {0: 4, 2: 3})
    for i, layer in made_by(name, case.bfloat16(params), stats, {0: 4, 2: 3}).items():
        assert adjusted_rand_score(layer.notes['labels'], plain[i].notes['labels']) == 1


def test_router_groups_hold_for_shared_rows_and_refuse_the_others(made):
    params, stats = made
    counts = {0: 4, 2: 2}
    for name in ('hc_smoe', 'sub_moe'):
        check_groups(name, made_by(name, params, stats, counts, groups=2), 2)
    for name, options in (('hc_smoe', {'router_init': 'mean'}), ('diversify', {})):
        with pytest.raises(ValueError, match='different router groups'):
            check_groups(name, made_by(name, params, stats, counts, groups=2, **options), 2)


@pytest.mark.parametrize('by', ['dense', 'routed'])
@pytest.mark.parametrize('linkage', ['average', 'single', 'complete', 'ward'])
def test_hc_smoe_clusters_the_mean_outputs(by, linkage):
    params, stats = case.make(3, noise=0.8)
    layers = hc_smoe.plan(stats, params, case.config(), {0: 3, 2: 3}, by=by, linkage=linkage)
    for i, layer in layers.items():
        moe, x = params[f'layer_{i}']['moe'], stats[i]['x']
        y, (_, gates) = case.outputs(moe, x), case.routing(moe, x)
        mean = np.array([
            np.mean([y[t, e] for t in range(len(x)) if by == 'dense' or gates[t, e] > 0], axis=0)
            for e in range(layer.before)
        ])
        theirs = AgglomerativeClustering(3, linkage=linkage).fit_predict(mean)
        assert adjusted_rand_score(theirs, layer.notes['labels']) == 1
        for e in range(layer.before):
            for j in range(layer.before):
                np.testing.assert_allclose(
                    layer.notes['distance'][e, j], np.sqrt(((mean[e] - mean[j]) ** 2).sum()),
                    atol=1e-10)


def test_hc_smoe_weighs_by_usage_and_shares_router_rows(made):
    params, stats = made
    counts = np.array([3, 0, 1, 0, 7, 0, 5, 0])
    stats = stats | {0: stats[0] | {'count': counts}}
    layer = hc_smoe.plan(stats, params, case.config(), {0: 4, 2: 3})[0]
    np.testing.assert_allclose(layer.mix, [
        [.75, 0, .25, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, .5, 0, .5, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0]])
    assert layer.alias.tolist() == case.LABELS[0].tolist()
    np.testing.assert_array_equal(layer.router, np.eye(8))
    assert layer.perms is None
    aligned = hc_smoe.plan(stats, params, case.config(), {0: 4, 2: 3}, align='reference')[0]
    assert aligned.perms is not None


def test_ream_distance_by_its_definition():
    params, stats = case.make(4, noise=0.8)
    moe, x = params['layer_0']['moe'], stats[0]['x']
    y, (z, g) = case.outputs(moe, x), case.routing(moe, x)
    gated = [sum(g[t, e] * y[t, e] for t in range(len(x))) / len(x) for e in range(8)]
    profile = z / np.linalg.norm(z, axis=0)
    gate = np.array([[np.linalg.norm(profile[:, i] - profile[:, j]) for j in range(8)]
                     for i in range(8)])
    found = ream.distances(stats[0])
    for i in range(8):
        for j in range(8):
            cos = gated[i] @ gated[j] / np.linalg.norm(gated[i]) / np.linalg.norm(gated[j])
            want = 1 - ((1 + cos) / 2 + 1 - gate[i, j] / gate.max()) / 2
            np.testing.assert_allclose(found[i, j], want, atol=1e-7)
    saliency = [np.mean([g[t, e] * np.linalg.norm(y[t, e]) for t in range(len(x)) if g[t, e] > 0])
                for e in range(8)]
    np.testing.assert_allclose(ream.saliencies(stats[0]), saliency)


def test_ream_gathers_around_the_most_salient_first():
    """Expert 4 is visited first and takes its two nearest, though 1 is nearer to centroid 0."""
    line = np.array([0.0, 0.9, 1.2, 5.0, 1.5, 9.0])
    apart, saliency = np.abs(line[:, None] - line), np.array([8.0, 2, 1, 3, 9, 0])
    centers = np.array([0, 4])
    assert ream.gather(apart, saliency, centers, 3).tolist() == [0, 1, 1, 0, 1, 0]
    assert ream.gather(apart, saliency, centers, 4).tolist() == [0, 1, 1, 1, 1, 0]
    assert ream.gather(apart, saliency, centers, 9).tolist() == [0, 1, 1, 1, 1, 1]
    assert ream.gather(apart, np.zeros(6), centers, 4).tolist() == [0, 0, 0, 0, 1, 1]


def test_ream_weighs_by_saliency_and_keeps_the_centroids_row():
    params, stats = case.make(5, noise=0.5)
    layers = ream.plan(stats, params, case.config(), {0: 3, 2: 2}, size=3)
    for i, layer in layers.items():
        saliency, centers = layer.notes['saliency'], layer.notes['centers']
        assert set(centers) == set(np.argsort(-saliency)[:layer.after])
        assert sorted(layer.notes['references']) == centers.tolist()
        for g, row in enumerate(layer.mix):
            ids = np.flatnonzero(layer.notes['labels'] == g)
            assert len(ids) <= 3
            np.testing.assert_allclose(row[ids], saliency[ids] / saliency[ids].sum(), rtol=1e-6)
            assert layer.router[g].argmax() == layer.notes['references'][g]
        assert layer.alias is None and layer.perms is not None
        np.testing.assert_array_equal(stats[i]['moments'] >= 0, True)


def test_ream_refuses_groups_that_cannot_hold_everybody(made):
    params, stats = made
    with pytest.raises(ValueError, match=r'layer 0: 3 groups of at most 2 .* 8 experts.*size=3'):
        ream.plan(stats, params, case.config(), {0: 3, 2: 3}, size=2)
    ream.plan(stats, params, case.config(), {0: 3, 2: 3}, size=3)
