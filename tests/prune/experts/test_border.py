"""Budgets by hand, and everything that is refused before any work."""

import dataclasses

import numpy as np
import pytest

import prune
from moe_jax import Stats
from prune.budget import budget


def test_budgets_by_hand(cfg):
    assert budget.counts(cfg, experts=4) == {0: 4, 2: 4}
    assert budget.counts(cfg, experts=[np.int64(2), 6]) == {0: 2, 2: 6}
    assert budget.counts(cfg, ratio=0.5) == {0: 3, 2: 3}
    assert budget.counts(cfg, ratio=[0, 0.7]) == {0: 6, 2: 2}
    assert budget.counts(cfg.with_experts(100), ratio=0.29) == {0: 71, 2: 71}
    assert budget.counts(cfg.with_experts(32), ratio=0.75) == {0: 8, 2: 8}


@pytest.mark.parametrize(('asked', 'match'), [
    ({}, 'either experts'), ({'experts': 2, 'ratio': 0.5}, 'either experts'),
    ({'experts': 0}, r'cannot keep 0 experts; valid: 1 \(topk\) to 6'),
    ({'experts': 7}, 'valid: 1'), ({'experts': -1}, 'valid: 1'), ({'experts': [2, 7]}, 'layer 2'),
    ({'experts': 2.0}, 'must be an integer'), ({'experts': True}, 'must be an integer'),
    ({'experts': 'all'}, 'must be an integer'), ({'experts': [1, 2, 3]}, '3 entries'),
    ({'ratio': 1.0}, r'\[0, 1\)'), ({'ratio': float('nan')}, r'\[0, 1\)'),
    ({'ratio': -0.1}, r'\[0, 1\)'), ({'ratio': 'half'}, r'\[0, 1\)'), ({'ratio': True}, r'\[0, 1'),
])
def test_a_budget_that_makes_no_sense_is_refused(cfg, asked, match):
    with pytest.raises(ValueError, match=match):
        budget.counts(cfg, **asked)


def test_topk_is_the_floor(cfg, params, stats):
    top2 = cfg.replace(topk=2)
    with pytest.raises(ValueError, match=r'valid: 2 \(topk, or fewer with clamp=True\)'):
        prune.plan('uncurl', stats, params, top2, experts=1)
    plan = prune.plan('m_smoe', stats, params, top2, experts=2, router_init='reference')
    assert all(layer.after == 2 for layer in plan.layers.values())


def test_a_dense_model_is_refused(cfg, stats):
    dense = cfg.replace(experts=(0, 0, 0))
    with pytest.raises(ValueError, match='no MoE layer'):
        prune.plan('uncurl', stats, {}, dense, experts=2)


@pytest.mark.parametrize(('name', 'options', 'match'), [
    ('uncrl', {}, "did you mean 'uncurl'"),
    ('uncurl', {'centre': 'none'}, "did you mean 'center'"),
    ('uncurl', {'center': 'tokens'}, "did you mean 'token'"),
    ('uncurl', {'align': 1}, 'True or False'),
    ('uncurl', {'seed': -1}, 'integer from 0'),
    ('uncurl', {'seed': 0.5}, 'integer from 0'),
    ('m_smoe', {'router_init': 'sum'}, 'valid: random, reference'),
    ('frequency', {'seed': 1}, 'it has none'),
])
def test_unknown_names_and_values_are_refused_with_the_nearest(
        cfg, params, stats, name, options, match):
    with pytest.raises(ValueError, match=match):
        prune.plan(name, stats, params, cfg, experts=2, **options)


def test_statistics_that_do_not_serve_are_refused(cfg, params, stats, edited):
    def refused(seen, match, name='uncurl', **options):
        with pytest.raises(ValueError, match=match):
            prune.plan(name, seen, params, cfg, experts=2, **options)

    layers = stats.groups['all']
    gram = layers[2]['logit_gram']
    lacking = {n: a for n, a in layers[2].items() if n != 'logit_gram'}
    refused(None, "needs the statistics")
    refused(Stats('', {}), 'empty')
    refused(Stats('', {'all': {0: layers[0]}}), r'layers \[0\], the model has MoE layers \[0, 2\]')
    refused(Stats('', {'all': {**layers, 2: lacking}}), "'logit_gram', which layer 2 lacks")
    refused(edited(stats, 2, logit_gram=gram * np.nan), "'logit_gram' of layer 2 has values")
    refused(edited(stats, 2, logit_gram=gram[:5, :5]), r'shape \(5, 5\)')
    refused(edited(stats, 0, count_top1=-layers[0]['count_top1'] - 1), 'negative', 'frequency')
    refused(edited(stats, 0, tokens=np.asarray(0)), 'no token')
    # Only asked for where an option reads it.
    no_input = {n: a for n, a in layers[2].items() if n != 'input_sum'}
    thin = Stats('', {'all': {**layers, 2: no_input}})
    refused(thin, "'input_sum', which layer 2 lacks", router_init='logsumexp')
    prune.plan('uncurl', thin, params, cfg, experts=2)


def test_params_of_another_shape_are_refused_before_planning(cfg, stats, draw):
    other = draw(dataclasses.replace(cfg, width=32))
    with pytest.raises(ValueError, match=r'prune\.plan'):
        prune.plan('uncurl', stats, other, cfg, experts=2)
