"""Each method's choices by hand; the contract of all methods is in test_contract.py."""

import jax
import numpy as np
import pytest

import prune
from moe_jax import Stats
from moe_jax.base import tree
from prune.experts.methods import METHODS
from prune.experts.methods.m_smoe import spend

ROUTERS = ('random', 'reference', 'freq_mean', 'mean', 'logsumexp', 'alias')
COPYING = [('frequency', {}), ('random', {})] + [
    (name, {'router_init': init})
    for name in ('uncurl', 'frequency_merge', 'm_smoe') for init in ROUTERS
]


def same_plans(a, b):
    for i, layer in a.layers.items():
        for name in ('mix', 'perms', 'router', 'router_shift', 'alias', 'fresh'):
            left, right = getattr(layer, name), getattr(b.layers[i], name)
            assert (left is None) == (right is None)
            if left is not None:
                np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(('name', 'options'), COPYING)
def test_keeping_every_expert_keeps_the_model(cfg, params, stats, name, options):
    plan = prune.plan(name, stats, params, cfg, experts=6, **options)
    out, small = prune.apply(params, cfg, plan)
    assert small == cfg
    jax.tree.map(np.testing.assert_array_equal, out, params)


@pytest.mark.parametrize(('name', 'options'), COPYING)
def test_every_router_gives_a_finite_model(cfg, params, stats, name, options):
    plan = prune.plan(name, stats, params, cfg, experts=3, **options)
    small, small_cfg = prune.apply(params, cfg, plan)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(small))
    assert small_cfg.experts == (3, 0, 3) or name == 'm_smoe'
    if options.get('router_init') == 'alias':
        assert small_cfg.router_rows(0) == 6


def test_frequency_keeps_the_most_used(cfg, params, stats, edited):
    stats = edited(stats, 0, count_top1=np.array([5, 0, 7, 5, 1, 5]))
    plan = prune.plan('frequency', stats, params, cfg, experts=3)
    assert plan.layers[0].mix.argmax(axis=1).tolist() == [0, 2, 3]
    np.testing.assert_array_equal(plan.layers[0].mix, np.eye(6)[[0, 2, 3]])
    np.testing.assert_array_equal(plan.layers[0].router, np.eye(6)[[0, 2, 3]])
    assert plan.layers[0].notes['margin'] == 0
    assert plan.layers[0].notes['zero_traffic'].tolist() == [1]


def planted(cfg, from_logits, counts, labels=(0, 1, 0, 2, 2, 1), seed=0):
    """Statistics whose logits follow `labels`, with given counts."""
    rng = np.random.default_rng(seed)
    logits, inputs = {}, {}
    for i in cfg.moe_layers:
        base = rng.normal(size=(80, max(labels) + 1))
        logits[i] = base[:, list(labels)] + 0.1 * rng.normal(size=(80, len(labels)))
        inputs[i] = rng.normal(size=(80, cfg.width))
    return from_logits(logits, inputs, dict.fromkeys(cfg.moe_layers, np.array(counts)))


def test_uncurl_merges_the_planted_clusters_by_their_counts(cfg, params, from_logits):
    stats = planted(cfg, from_logits, [3, 0, 1, 0, 0, 9])
    layer = prune.plan('uncurl', stats, params, cfg, experts=3).layers[0]
    np.testing.assert_allclose(layer.mix, [
        [.75, 0, .25, 0, 0, 0],  # shares of 3 and 1
        [0, 0, 0, 0, 0, 1],      # 0 of 9: expert 1 has weight zero
        [0, 0, 0, .5, .5, 0],    # no traffic in the cluster: plain mean
    ])
    assert layer.notes['labels'].tolist() == [0, 1, 0, 2, 2, 1]
    assert layer.notes['references'].tolist() == [0, 5, 3]
    assert layer.notes['zero_traffic'].tolist() == [1, 3, 4]
    assert layer.notes['weightless'].tolist() == [1]
    assert layer.notes['embedding'].shape == (6, 3) and layer.notes['similarity'].shape == (6, 6)
    assert layer.fresh == 0 and layer.router is None
    hidden = np.arange(cfg.expert_hidden)
    np.testing.assert_array_equal(layer.perms[[0, 1, 3, 5]], [hidden] * 4)
    assert (layer.perms[2] != hidden).any() and (layer.perms[4] != hidden).any()


def test_uncurl_copies_a_lone_expert(cfg, params, from_logits):
    stats = planted(cfg, from_logits, [0, 4, 5, 5, 5, 5], labels=(0, 1, 1, 1, 1, 1))
    plan = prune.plan('uncurl', stats, params, cfg, experts=2, router_init='reference')
    small, _ = prune.apply(params, cfg, plan)
    old, new = params['layer_0']['moe'], small['layer_0']['moe']
    for name in old['experts']:
        np.testing.assert_array_equal(new['experts'][name][0], old['experts'][name][0])
    rows = tree.take(old['router']['kernel'], [0, 2])
    np.testing.assert_array_equal(new['router']['kernel'], rows)


def test_uncurl_can_keep_the_first_layer_greedy(cfg, params, from_logits):
    stats = planted(cfg, from_logits, [3, 0, 1, 0, 0, 9])
    plan = prune.plan('uncurl', stats, params, cfg, experts=3, first_layer='topk')
    np.testing.assert_array_equal(plan.layers[0].mix, np.eye(6)[[0, 2, 5]])
    assert plan.layers[2].notes['labels'].tolist() == [0, 1, 0, 2, 2, 1]


@pytest.mark.parametrize('seed', range(3))
def test_renaming_experts_renames_the_merge(cfg, params, from_logits, seed):
    """The same experts under other numbers: the same merged experts, in some order."""
    order = np.random.default_rng(seed).permutation(6)
    labels, counts = np.array([0, 1, 0, 2, 2, 1]), np.array([3, 2, 1, 4, 5, 9])
    rng = np.random.default_rng(seed)
    z = {i: rng.normal(size=(80, 3))[:, labels] + 0.1 * rng.normal(size=(80, 6)) for i in (0, 2)}
    x = {i: rng.normal(size=(80, cfg.width)) for i in (0, 2)}
    renamed = dict(params)
    for i in (0, 2):
        block = params[f'layer_{i}']
        renamed[f'layer_{i}'] = {**block, 'moe': tree.take(block['moe'], order)}
    sets = [
        (params, from_logits(z, x, dict.fromkeys(z, counts))),
        (renamed, from_logits({i: a[:, order] for i, a in z.items()}, x,
                              dict.fromkeys(z, counts[order]))),
    ]
    merged = []
    for weights, stats in sets:
        plan = prune.plan('uncurl', stats, weights, cfg, experts=3, router_init='freq_mean')
        merged.append(prune.apply(weights, cfg, plan)[0]['layer_0']['moe'])
    # Output biases and router rows are the same whatever hidden order the reference has.
    for path in (('experts', 'down_bias'), ('router', 'kernel')):
        a, b = (np.asarray(m[path[0]][path[1]]) for m in merged)
        np.testing.assert_allclose(np.sort(a, axis=0), np.sort(b, axis=0), atol=1e-5)


def test_frequency_merge_gathers_around_the_most_used(cfg, params, from_logits):
    stats = planted(cfg, from_logits, [8, 1, 2, 7, 1, 9])
    layer = prune.plan('frequency_merge', stats, params, cfg, experts=3).layers[2]
    assert layer.notes['centers'].tolist() == [0, 3, 5]
    assert layer.notes['labels'].tolist() == [0, 1, 0, 2, 2, 1]
    assert layer.notes['references'].tolist() == [0, 5, 3]
    np.testing.assert_allclose(layer.mix[1], [0, .1, 0, 0, 0, .9], rtol=1e-6)


def test_m_smoe_spends_one_budget_over_all_layers():
    usage = {0: np.array([.7, .1, .1, .1]), 2: np.array([.3, .3, .3, .1]), 4: np.ones(4) / 4}
    assert spend(usage, {0: 2, 2: 2, 4: 2}, 1) == {0: 1, 2: 3, 4: 2}
    # A layer that keeps all it has is left alone; ties go to the lower layer.
    assert spend(usage, {0: 4, 2: 1, 4: 2}, 1) == {0: 4, 2: 2, 4: 1}
    assert spend({0: np.zeros(4), 1: np.zeros(4)}, {0: 2, 1: 2}, 1) == {0: 3, 1: 1}
    assert spend(usage, {0: 2, 2: 2, 4: 2}, 2) == {0: 2, 2: 2, 4: 2}


def test_m_smoe_shares_experts_between_router_rows(cfg, params, from_logits, edited):
    stats = planted(cfg, from_logits, [8, 1, 2, 7, 1, 9])
    plan = prune.plan('m_smoe', stats, params, cfg, experts=3, selection='per_layer')
    small, small_cfg = prune.apply(params, cfg, plan)
    assert small_cfg.aliases == ((0, 1, 0, 2, 2, 1), None, (0, 1, 0, 2, 2, 1))
    np.testing.assert_array_equal(small['layer_0']['moe']['router']['kernel'],
                                  params['layer_0']['moe']['router']['kernel'])
    with pytest.raises(ValueError, match='already share experts'):
        prune.plan('frequency', stats, small, small_cfg, experts=2)
    uneven = edited(stats, 0, count=np.array([90, 1, 1, 1, 1, 1]))
    plan = prune.plan('m_smoe', uneven, params, cfg, experts=3)
    assert (plan.layers[0].after, plan.layers[2].after) == (1, 5)
    assert prune.apply(params, cfg, plan)[1].experts == (1, 0, 5)


def test_random_depends_on_seed_and_layer_and_needs_no_statistics(cfg, params):
    plans = [prune.plan('random', None, params, cfg, experts=3, seed=s) for s in (0, 0, 1)]
    same_plans(plans[0], plans[1])
    drawn = {layer.mix.tobytes() for plan in plans for layer in plan.layers.values()}
    assert len(drawn) > 2


def test_a_group_of_the_statistics_can_decide_alone(cfg, params, stats, edited):
    other = edited(stats, 0, count_top1=np.array([0, 0, 0, 1, 1, 1000])).groups['all']
    both = Stats(stats.fingerprint, {'a': stats.groups['all'], 'b': other})
    alone = prune.plan('frequency', both, params, cfg, experts=3, group='b')
    assert alone.layers[0].mix.argmax(axis=1).tolist() == [3, 4, 5]
    assert alone.options['group'] == 'b'
    same_plans(prune.plan('frequency', both, params, cfg, experts=3, group='a'),
               prune.plan('frequency', stats, params, cfg, experts=3))
    with pytest.raises(ValueError, match="group 'c'"):
        prune.plan('frequency', both, params, cfg, experts=3, group='c')


def test_the_table_of_methods():
    rows = {row.name: row for row in prune.methods()}
    assert list(rows) == list(METHODS)
    assert rows['uncurl'].needs == ('tokens', 'count_top1', 'logit_gram')
    assert {row.kind for row in rows.values()} == {'drop', 'merge'}
    assert all(METHODS[name].doc and row.paper for name, row in rows.items())
    assert prune.options('random') == {'seed': 0}
