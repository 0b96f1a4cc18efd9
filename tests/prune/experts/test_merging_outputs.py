"""Diversifying, Sub-MoE and STUN against their definitions, by loops and by scikit-learn."""

import dataclasses

import numpy as np
import pytest
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from prune.experts.methods import diversify, stun, sub_moe
from prune.plans.layer import LayerPlan
from prune.similarity import align
from tests.prune.experts import merging_case as case

PLANTED = {0: 4, 2: 3}


def drawn(seed, tokens=30, experts=5, width=4):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(tokens, 1, width))
    return (base + rng.normal(size=(tokens, experts, width)) + 3).astype(np.float32)


def cka_of(x, y):
    """Linear CKA of [S, D] and [S, D] by its definition."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return np.linalg.norm(x.T @ y) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)


@pytest.mark.parametrize('block', [1, 700, 1 << 24])
def test_cka_by_its_definition(monkeypatch, block):
    monkeypatch.setattr(diversify, 'BLOCK', block)
    y = drawn(0)
    found = diversify.cka(y)
    for i in range(5):
        for j in range(5):
            want = cka_of(y[:, i].astype(float), y[:, j].astype(float))
            np.testing.assert_allclose(found[i, j], want, rtol=1e-5)


def test_cka_sees_neither_rotation_nor_scale_nor_offset():
    y = drawn(1, experts=2)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    same = np.stack([y[:, 0], 7 * y[:, 0] @ turn + 50], axis=1).astype(np.float32)
    np.testing.assert_allclose(diversify.cka(same), 1, atol=1e-5)


def test_an_expert_that_always_says_the_same_is_like_no_other():
    y = drawn(2)
    y[:, 3] = [0.1, 1e4, -3.3, 7]
    np.testing.assert_array_equal(diversify.cka(y)[3], [0, 0, 0, 1, 0])
    assert diversify.cka(np.zeros((4, 3, 2), np.float32)).tolist() == np.eye(3).tolist()


@pytest.mark.parametrize('block', [1, 100, 1 << 24])
def test_weight_cosine_is_that_of_all_weights_in_a_row(monkeypatch, block):
    monkeypatch.setattr(diversify, 'BLOCK', block)
    experts = case.make(1, noise=1)[0]['layer_0']['moe']['experts']
    flat = np.concatenate([leaf.reshape(8, -1) for leaf in experts.values()], axis=1)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(diversify.weight_cosine(experts), unit @ unit.T, atol=1e-6)


def test_diversify_averages_members_and_router_rows():
    params, stats = case.make()
    layer = diversify.plan(stats, params, case.config(), PLANTED)[0]
    third = np.float32(1) / 3
    np.testing.assert_allclose(layer.mix[0], [third, 0, third, 0, 0, 0, 0, third])
    np.testing.assert_array_equal(layer.mix, layer.router)
    assert layer.notes['references'].tolist() == [0, 1, 3, 4] and layer.alias is None


def test_diversify_needs_alignment_to_see_reordered_copies():
    params, _stats = case.make()
    moe, rng = params['layer_0']['moe'], np.random.default_rng(0)
    orders = np.stack([rng.permutation(case.HIDDEN) for _ in range(8)])
    mixed_up = {n: np.asarray(leaf) for n, leaf in align.permute(moe['experts'], orders).items()}
    params = params | {'layer_0': {'moe': moe | {'experts': mixed_up}}}
    seen = {by: diversify.plan({}, params, case.config(), PLANTED, by=by)[0].notes
            for by in ('weights', 'aligned_weights')}
    together = case.LABELS[0][:, None] == case.LABELS[0]
    assert seen['aligned_weights']['similarity'][together].min() > 0.95
    assert seen['weights']['similarity'][together].min() < 0.8
    assert adjusted_rand_score(seen['aligned_weights']['labels'], case.LABELS[0]) == 1


@pytest.mark.parametrize('seed', range(3))
def test_sub_moe_is_k_means_of_normalised_outputs(seed):
    params, stats = case.make(seed, noise=0.2)
    for i, layer in sub_moe.plan(stats, params, case.config(), PLANTED).items():
        y = case.outputs(params[f'layer_{i}']['moe'], stats[i]['x'])
        points = (y / np.linalg.norm(y, axis=2, keepdims=True)).transpose(1, 0, 2)
        points = points.reshape(len(points), -1) / np.sqrt(len(y))
        theirs = KMeans(PLANTED[i], n_init=20, random_state=0).fit(points)
        assert adjusted_rand_score(theirs.labels_, layer.notes['labels']) == 1
        np.testing.assert_allclose(layer.notes['inertia'], theirs.inertia_, rtol=1e-6)
        np.testing.assert_allclose(layer.notes['cosine'], points @ points.T, atol=1e-12)
        assert layer.alias.tolist() == layer.notes['labels'].tolist()


def test_sub_moe_cosine_of_tokens_that_met():
    params, stats = case.make(2, noise=0.5)
    layer = sub_moe.plan(stats, params, case.config(), PLANTED, by='routed')[0]
    y = case.outputs(params['layer_0']['moe'], stats[0]['x'])
    _, gates = case.routing(params['layer_0']['moe'], stats[0]['x'])
    for i in range(8):
        for j in range(8):
            met = [y[t, i] @ y[t, j] / np.linalg.norm(y[t, i]) / np.linalg.norm(y[t, j])
                   for t in range(len(y)) if gates[t, i] > 0 and gates[t, j] > 0]
            want = 1 if i == j else np.mean(met) if met else 0
            np.testing.assert_allclose(layer.notes['cosine'][i, j], want, atol=1e-12)


@pytest.mark.skipif('rank' not in {f.name for f in dataclasses.fields(LayerPlan)},
                    reason='this LayerPlan has no rank')
def test_sub_moe_passes_its_rank_on():
    params, stats = case.make()
    layers = sub_moe.plan(stats, params, case.config(), PLANTED, rank=2)
    assert {layer.rank for layer in layers.values()} == {2}
    assert not sub_moe.plan(stats, params, case.config(), PLANTED)[0].rank


def test_stun_distance_by_its_definition():
    moe = case.make(1, noise=1)[0]['layer_0']['moe']
    rows = moe['router']['kernel'].astype(np.float64)
    scale = np.sqrt(sum(v**2 for row in rows for v in row))
    found = stun.distances(moe, 2.0)
    for i in range(8):
        for j in range(8):
            np.testing.assert_allclose(
                found[i, j], 2 * np.sqrt(((rows[i] - rows[j]) ** 2).sum()) / scale, atol=1e-12)


def labels_at(distance, tau):
    """Complete linkage of one layer cut at a distance, by scipy."""
    tree = hierarchy.linkage(squareform(distance, checks=False), 'complete')
    return hierarchy.fcluster(tree, tau, 'distance')


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('total', [5, 9, 15, 19])
def test_stun_finds_what_bisection_finds(seed, total):
    rng = np.random.default_rng(seed)
    distance = {}
    for i, count in {0: 9, 1: 6, 4: 7}.items():
        rows = rng.normal(size=(count, 3)) * rng.uniform(0.5, 2)
        distance[i] = np.linalg.norm(rows[:, None] - rows, axis=2)
    low, high = 0.0, 100.0
    for _ in range(80):
        tau = (low + high) / 2
        few = sum(labels_at(d, tau).max() for d in distance.values()) <= total
        low, high = (low, tau) if few else (tau, high)
    counts = {0: total - 4, 1: 3, 4: 1}
    assert counts[0] < 9 or total > 12
    if counts[0] >= 9:
        counts = {0: 8, 1: 5, 4: total - 13}
    found = stun.clusters(distance, counts, 1)
    for i, (labels, tau) in found.items():
        assert adjusted_rand_score(labels_at(distance[i], high), labels) == 1
        assert tau <= high + 1e-9
        member = labels[:, None] == labels
        np.testing.assert_allclose(distance[i][member].max(), tau)


def test_stun_reaches_the_total_among_ties_with_a_floor():
    tied = {i: 1 - np.eye(6) for i in (0, 1)}
    for total in range(4, 13):
        counts = {0: (total + 1) // 2, 1: total // 2}
        found = {i: labels.max() + 1 for i, (labels, _) in stun.clusters(tied, counts, 2).items()}
        assert sum(found.values()) == total and min(found.values()) >= 2
    whole = stun.clusters({0: np.zeros((6, 6)), 1: 1 - np.eye(6)}, {0: 6, 1: 3}, 1)
    assert whole[0][0].tolist() == list(range(6)) and whole[1][0].max() == 2


def test_stun_layers_end_with_different_counts_and_at_least_topk():
    params, stats = case.make(noise=0.01)
    rows = params['layer_2']['moe']['router']['kernel']
    rows[...] = rows[:1] + 1e-4 * np.random.default_rng(0).normal(size=rows.shape)
    layers = stun.plan(stats, params, case.config(), {0: 5, 2: 5}, average_below=0)
    assert (layers[0].after, layers[2].after) == (8, 2)
    assert layers[2].notes['tau'] > 0 and layers[0].notes['tau'] == 0


def test_stun_keeps_the_member_nearest_to_the_mean():
    params, stats = case.make(7, noise=0.6)
    layer = stun.plan(stats, params, case.config(), {0: 4, 2: 6}, average_below=0)[0]
    experts, labels = params['layer_0']['moe']['experts'], layer.notes['labels']
    flat = np.concatenate([leaf.reshape(8, -1) for leaf in experts.values()], axis=1).astype(float)
    want = []
    for g in range(4):
        ids = np.flatnonzero(labels == g)
        away = [((flat[e] - flat[ids].mean(axis=0)) ** 2).sum() for e in ids]
        want.append(int(ids[0]) if len(ids) == 2 else int(ids[np.argmin(away)]))
    assert max(np.bincount(labels)) > 2
    np.testing.assert_array_equal(layer.mix, np.eye(8)[sorted(want)])
    np.testing.assert_array_equal(layer.router, layer.mix)


def test_stun_averages_layers_with_few_clusters():
    params, stats = case.make()
    layers = stun.plan(stats, params, case.config(), PLANTED)
    assert set(np.unique(layers[0].mix)) == {0, 1}  # 4 clusters: one of each
    np.testing.assert_allclose(np.unique(layers[2].mix), [0, 0.5])  # 3: the mean of each
    np.testing.assert_array_equal(layers[2].mix, layers[2].router)
    assert layers[2].perms is None


def test_stun_coactivation_is_one_on_average_and_draws_experts_together():
    together = np.array([[9, 6, 0], [6, 8, 0], [0, 0, 5]])
    np.testing.assert_allclose(stun.together({'together': together}),
                               [[0, 3, 0], [3, 0, 0], [0, 0, 0]])
    assert not stun.together({'together': np.diag([3, 4])}).any()
    params, stats = case.make(noise=1)
    pairs = np.zeros((8, 8), int)
    pairs[2, 5] = pairs[5, 2] = 4
    seen = stats | {0: stats[0] | {'together': pairs}}
    layers = stun.plan(seen, params, case.config(), {0: 7, 2: 6}, coactivation=True)
    assert layers[0].notes['labels'].tolist() == [0, 1, 2, 3, 4, 2, 5, 6]
