"""Each criterion against loops over tokens and weights, or numbers worked out by hand."""

import jax
import numpy as np
import pytest

import moe_jax
import prune
from prune.weights.methods import gblm, lamp, magnitude, moe_pruner, wanda
from prune.weights.stack import NEVER, Stack, blended, by_expert, channel_norms
from tests.prune.weights.weights_case import (
    BATCHES,
    CFG,
    LEAVES,
    TOKENS,
    drawn,
    edited,
    kept,
    matrices,
    observed,
)

run = jax.jit(moe_jax.forward, static_argnums=0, static_argnames='watch')


@pytest.fixture(scope='module')
def params():
    return drawn()


@pytest.fixture(scope='module')
def stats(params):
    return observed(CFG, params)


@pytest.fixture(scope='module')
def everything(params):
    return observed(CFG, params, grams=True, gradients=True)


def token_loops(params, layer, gated):
    """{leaf: scores [E, in, out]} from the model's own routing, token by token in float64."""
    record = run(CFG, params, TOKENS, watch=('routing',))[1]['routing'][layer]
    weights = {k: v.astype(np.float64) for k, v in matrices(params, layer).items()}
    squares = {'in': np.zeros((4, CFG.width)), 'hidden': np.zeros((4, CFG.expert_hidden))}
    for x, ids, gates in zip(np.asarray(record.inputs, np.float64), np.asarray(record.ids),
                             np.asarray(record.gates, np.float64), strict=True):
        for e, g in zip(ids, gates, strict=True):
            a = x @ weights['gate'][e]
            h = a / (1 + np.exp(-a)) * (x @ weights['up'][e])
            factor = g if gated else 1.0
            squares['in'][e] += (factor * x) ** 2
            squares['hidden'][e] += (factor * h) ** 2
    found = {}
    for leaf, w in weights.items():
        side = squares['hidden' if leaf == 'down' else 'in']
        found[leaf] = np.zeros_like(w)
        for e, i, o in np.ndindex(w.shape):
            norm = side[e, i] ** 0.5 if side[e].any() else 1.0  # no token: by magnitude
            found[leaf][e, i, o] = abs(w[e, i, o]) * norm
    return found


def without_lowest(column, count):
    mask = np.ones(len(column), bool)
    mask[np.argsort(column, kind='stable')[:count]] = False
    return mask


@pytest.mark.parametrize(('name', 'gated'), [('wanda', False), ('moe_pruner', True)])
def test_norms_of_routed_tokens_against_loops(params, stats, name, gated):
    plan = prune.sparsify(name, stats, params, CFG, sparsity=0.4, min_tokens=0)
    for i in CFG.moe_layers:
        want, masks = token_loops(params, i, gated), kept(plan, i)
        for leaf in LEAVES:
            for e in range(4):
                for o in range(want[leaf].shape[2]):
                    column = want[leaf][e, :, o]
                    np.testing.assert_array_equal(
                        masks[leaf][e, :, o], without_lowest(column, int(0.4 * len(column))))


def test_gates_of_one_make_moe_pruner_wanda():
    one = CFG.replace(topk=1)  # renormalized over the one that is chosen
    params = drawn(one)
    stats = observed(one, params)
    plans = [prune.sparsify(n, stats, params, one) for n in ('wanda', 'moe_pruner')]
    for i in one.moe_layers:
        for leaf in LEAVES:
            np.testing.assert_array_equal(*(plan.layers[i].masks[leaf] for plan in plans))


def test_magnitude_is_the_size_of_weights():
    w = np.array([[[-3.0, 1.0], [0.0, -2.0]]], np.float32)
    np.testing.assert_array_equal(magnitude.scores(Stack(0, 'up', w, {})), [[[3, 1], [0, 2]]])


@pytest.mark.parametrize('unit', ['expert', 'layer'])
def test_lamp_against_its_definition(unit):
    w = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    w[0, 0, :3] = w[0, 1, :3] = 0.7  # equal weights count each other
    w[1, 0, 0] = 0
    found = lamp.scores(Stack(0, 'up', w, {}), unit=unit)
    for e, i, o in np.ndindex(w.shape):
        pool = (w[e] if unit == 'expert' else w).astype(np.float64).ravel()
        mine = float(w[e, i, o])
        rest = sum(v * v for v in pool if abs(v) >= abs(mine))
        np.testing.assert_allclose(found[e, i, o], mine * mine / rest, rtol=1e-6)
    assert all(found[e].max() == 1 for e in range(3)) == (unit == 'expert')
    assert found.max() == 1
    zeros = lamp.scores(Stack(0, 'up', np.zeros((1, 2, 2), np.float32), {}), unit=unit)
    np.testing.assert_array_equal(zeros, 0)


def test_lamp_empties_no_expert_where_magnitude_does(params):
    small = {**params, 'layer_0': {**params['layer_0'], 'moe': {
        **params['layer_0']['moe'], 'experts': {
            k: v.at[1].multiply(1e-3) for k, v in params['layer_0']['moe']['experts'].items()}}}}
    def alive(name, **options):
        plan = prune.sparsify(name, None, small, CFG, scope='layer', sparsity=0.7, **options)
        return kept(plan, 0)['up'][1].sum()
    assert alive('lamp') > 0 and alive('magnitude') == 0 == alive('lamp', unit='layer')


def test_gblm_by_hand():
    """Two tokens; |W| (|x| / sqrt(2) + alpha G / 2)."""
    stack = Stack(0, 'up', np.array([[[-2.0], [1.0]]], np.float32), {
        'tokens': np.array(2), 'evaluated': np.array([2]), 'input_square': np.array([[8.0, 2.0]]),
        'grad_abs/up': np.array([[[0.5], [3.0]]]), 'grad_square/up': np.array([[[0.5], [8.0]]])})
    np.testing.assert_allclose(gblm.scores(stack, alpha=10, min_tokens=0),
                               [[[2 * (2 + 10 * 0.25)], [1 * (1 + 10 * 1.5)]]])
    np.testing.assert_allclose(gblm.scores(stack, alpha=10, norm='l2', min_tokens=0),
                               [[[2 * (2 + 10 * 0.5)], [1 * (1 + 10 * 2)]]])


def test_gblm_without_gradient_is_wanda(params, everything):
    stats = everything
    plans = [prune.sparsify('gblm', stats, params, CFG, alpha=0),
             prune.sparsify('wanda', stats, params, CFG)]
    for leaf in LEAVES:
        np.testing.assert_array_equal(*(kept(p, 2)[leaf] for p in plans))
    other = prune.sparsify('gblm', stats, params, CFG)
    assert any((kept(other, 2)[leaf] != kept(plans[1], 2)[leaf]).any() for leaf in LEAVES)


def test_gblm_means_the_same_with_twice_the_data(params, everything):
    stats = everything
    once, twice = (prune.sparsify('gblm', s, params, CFG, min_tokens=0)
                   for s in (stats, stats + stats))
    for leaf in LEAVES:
        np.testing.assert_array_equal(kept(once, 0)[leaf], kept(twice, 0)[leaf])


def unrouted(stats, expert, groups='a'):
    """One group's statistics with an expert that no token reached."""
    stats = moe_jax.Stats(stats.fingerprint, {groups: stats.groups[groups]})
    layer = stats.groups[groups][0]
    changed = {n: layer[n].copy() for n in (
        'input_square', 'hidden_square', 'gated_input_square', 'gated_hidden_square', 'input_gram',
        'hidden_gram', 'grad_abs/gate', 'grad_abs/up', 'grad_abs/down', 'moments')}
    for name, value in changed.items():
        value[(Ellipsis, expert) if name == 'moments' else expert] = 0
    return edited(stats, 0, **changed)


@pytest.mark.parametrize('name', ['wanda', 'moe_pruner', 'gblm', 'sparsegpt'])
def test_an_expert_without_tokens_is_pruned_by_magnitude(params, everything, name):
    stats = unrouted(everything, 2)
    plan = prune.sparsify(name, stats, params, CFG)
    plain = prune.sparsify('magnitude', None, params, CFG, scope='output')
    for leaf in LEAVES:
        np.testing.assert_array_equal(kept(plan, 0)[leaf][2], kept(plain, 0)[leaf][2])
    assert plan.layers[0].notes['zero_traffic'].tolist() == [2]
    assert 'without traffic: [2]' in plan.describe().splitlines()[1]
    if name == 'sparsegpt':
        assert plan.layers[0].notes['fallback_up'].tolist() == [2]
        sparse, _ = prune.apply(params, CFG, plan)
        np.testing.assert_array_equal(matrices(sparse, 0)['up'][2], np.where(
            kept(plan, 0)['up'][2], matrices(params, 0)['up'][2], 0))


def test_an_expert_without_tokens_goes_first_in_a_wider_scope(params, everything):
    stats = unrouted(everything, 2)
    plan = prune.sparsify('wanda', stats, params, CFG, scope='layer', sparsity=0.3)
    assert not any(kept(plan, 0)[leaf][2].any() for leaf in LEAVES)


def test_few_tokens_are_drawn_to_the_layer():
    """By hand: 1 token of 2, 7 others with a mean square of (8, 6) / 8."""
    sums, tokens = np.array([[0.0, 2.0], [8.0, 4.0]]), np.array([1, 7])
    mean = sums.sum(axis=0) / 8
    found = blended(sums, tokens, mean, 4)
    np.testing.assert_allclose(found[0], [(0 + 3 * 1) / 4, (2 + 3 * 0.75) / 4])
    np.testing.assert_array_equal(found[1], sums[1])
    np.testing.assert_array_equal(blended(sums, tokens, mean, 0), sums)
    # Without tokens the blend would be nothing, and norms are equal.
    norms = channel_norms(np.array([[0.0, 0.0], [1, 4]]), np.array([0, 9]), 4)
    np.testing.assert_array_equal(norms, [[NEVER, NEVER], [1, 2]])


def test_scaling_the_inputs_of_an_expert_changes_no_output(params, stats):
    stats = moe_jax.Stats(stats.fingerprint, {'a': stats.groups['a']})
    squares = stats.groups['a'][0]['input_square'].copy()
    squares[1] *= 16
    other = edited(stats, 0, input_square=squares)
    for pattern in None, (2, 4):
        plans = [prune.sparsify('wanda', s, params, CFG, pattern=pattern, min_tokens=0)
                 for s in (stats, other)]
        for leaf in LEAVES:
            np.testing.assert_array_equal(*(kept(plan, 0)[leaf] for plan in plans))


@pytest.mark.parametrize('module', [wanda, moe_pruner])
def test_hidden_units_can_be_renamed(module):
    rng = np.random.default_rng(3)
    order, tokens = rng.permutation(12), np.array([50, 3])
    seen = {'evaluated': tokens, **{name: rng.random((2, 12)) for name in (
        'hidden_square', 'gated_hidden_square')}}
    w = rng.normal(size=(2, 12, 8)).astype(np.float32)
    moved = {n: v if v.ndim == 1 else v[:, order] for n, v in seen.items()}
    np.testing.assert_array_equal(module.scores(Stack(0, 'down', w, seen))[:, order],
                                  module.scores(Stack(0, 'down', w[:, order], moved)))


def test_experts_can_be_renamed(params):
    order = np.array([2, 0, 3, 1])
    def renamed(layer):
        if 'moe' not in layer:
            return layer
        return {**layer, 'moe': {kind: {n: a[order] for n, a in part.items()}
                                 for kind, part in layer['moe'].items()}}
    other = {name: renamed(block) for name, block in params.items()}
    for name in ('wanda', 'moe_pruner', 'magnitude', 'lamp'):
        for scope in ('output', 'matrix', 'layer', 'global'):
            a, b = (prune.sparsify(name, observed(CFG, p), p, CFG, scope=scope)
                    for p in (params, other))
            for leaf in LEAVES:
                np.testing.assert_array_equal(kept(a, 2)[leaf][order], kept(b, 2)[leaf])


def test_rows_that_share_an_expert_are_one():
    """R=5 rows: experts 0 and 1, a closed row, a constant."""
    cfg = CFG.replace(experts=(2, 0, 2), aliases=((0, 1, 0, -1, 2), None, (0, 1, 0, -1, 2)),
                      constants=(1, 0, 1))
    seen = {'moments': np.arange(45.0).reshape(3, 3, 5), 'input_square': np.eye(5),
            'tokens': np.array(7)}
    found = by_expert(seen, cfg, 0)
    np.testing.assert_array_equal(found['evaluated'], [0 + 2, 1])
    np.testing.assert_array_equal(found['input_square'], [[1, 0, 1, 0, 0], [0, 1, 0, 0, 0]])
    assert found['tokens'] == 7


@pytest.mark.full
def test_a_merged_model_is_sparsified_and_keeps_its_router(params, stats):
    small, cfg = prune.apply(params, CFG, prune.plan(
        'm_smoe', stats, params, CFG, experts=2, router_init='alias'))
    assert cfg.aliases[0] is not None
    seen = moe_jax.observe(cfg, small, BATCHES)
    plan = prune.sparsify('wanda', seen, small, cfg, sparsity=0.5)
    sparse, after = prune.apply(small, cfg, plan)
    assert after == cfg and plan.layers[0].notes['evaluated'].sum() == TOKENS.size * 2
    with pytest.raises(ValueError, match=r'gblm: reads gradients.*layers \[0, 2\]'):
        prune.sparsify('gblm', seen, small, cfg)
    np.testing.assert_array_equal(sparse['layer_0']['moe']['router']['kernel'],
                                  small['layer_0']['moe']['router']['kernel'])
    constant, cfg = prune.apply(params, CFG, prune.plan('mone', stats, params, CFG, experts=3))
    plan = prune.sparsify('magnitude', None, constant, cfg)
    sparse, after = prune.apply(constant, cfg, plan)
    assert after == cfg and cfg.constants == (1, 0, 1)
    np.testing.assert_array_equal(sparse['layer_0']['moe']['constants'],
                                  constant['layer_0']['moe']['constants'])
