"""One contract for every criterion, what is refused before any work, and layer by layer."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moe_jax
import prune
from moe_jax.model.fingerprint import fingerprint
from prune.weights.methods import WEIGHT_METHODS
from tests.prune.weights.weights_case import (
    BATCHES,
    CFG,
    LEAVES,
    TOKENS,
    drawn,
    kept,
    matrices,
    observed,
    with_gradients,
)

NAMES = list(WEIGHT_METHODS)
SCORED = [name for name in NAMES if WEIGHT_METHODS[name].form == 'scores']
FORMS = {
    'gated': CFG,
    'plain with biases, top-1, raw gates': CFG.replace(ffn='gelu', ffn_bias=True, topk=1,
                                                      gate='softmax_topk'),
    'shared expert, uneven, bfloat16': CFG.replace(experts=(0, 4, 2), shared_hidden=4,
                                                  dtype='bfloat16'),
}


@pytest.fixture(scope='module')
def seen():
    found = {}

    def observe(form):
        if form not in found:
            cfg = FORMS[form]
            params = drawn(cfg, dtype=jnp.dtype(cfg.dtype))
            stats = observed(cfg, params, grams=True)
            found[form] = cfg, params, with_gradients(stats, params)
        return found[form]

    return observe


def same_masks(a, b):
    for i, layer in a.layers.items():
        assert layer.masks.keys() == b.layers[i].masks.keys()
        for kind in ('masks', 'weights'):
            jax.tree.map(np.testing.assert_array_equal, getattr(layer, kind),
                         getattr(b.layers[i], kind))


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', NAMES)
def test_every_form_of_model(seen, name, form, tmp_path):
    cfg, params, stats = seen(form)
    before = jax.tree.map(np.array, params)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        plan = prune.sparsify(name, stats, params, cfg, scope='output', sparsity=0.3)
    same_masks(plan, prune.sparsify(name, stats, params, cfg, scope='output', sparsity=0.3))
    same_masks(plan, prune.Plan.load(plan.save(tmp_path / 'plan.npz')))
    sparse, after = prune.apply(params, cfg, plan)
    assert after == cfg
    assert jax.tree.map(lambda a: (a.shape, a.dtype), sparse) == jax.tree.map(
        lambda a: (a.shape, a.dtype), params)
    for i in cfg.moe_layers:
        for leaf, mask in kept(plan, i).items():
            inputs = mask.shape[1]
            assert ((~mask).sum(axis=1) == int(0.3 * inputs)).all()
            assert (matrices(sparse, i)[leaf][~mask] == 0).all()
            if WEIGHT_METHODS[name].form == 'scores':
                np.testing.assert_array_equal(matrices(sparse, i)[leaf][mask],
                                              matrices(params, i)[leaf][mask])
    jax.tree.map(np.testing.assert_array_equal, params, before)
    outside = [{k: v for k, v in p['layer_2'].items() if k != 'moe'} for p in (sparse, params)]
    jax.tree.map(np.testing.assert_array_equal, *outside)


@pytest.mark.parametrize('name', SCORED)
def test_exact_counts_in_every_scope(seen, name):
    cfg, params, stats = seen('gated')
    each = 8 * 12
    for scope, size in ('matrix', each), ('layer', 12 * each), ('global', 24 * each):
        plan = prune.sparsify(name, stats, params, cfg, scope=scope, sparsity=0.37)
        gone = np.array([[(~kept(plan, i)[leaf]).sum(axis=(1, 2)) for leaf in LEAVES]
                         for i in cfg.moe_layers])  # [layers, leaves, E]
        sums = {'matrix': gone, 'layer': gone.sum(axis=(1, 2)), 'global': gone.sum()}[scope]
        assert (sums == int(0.37 * size)).all()


@pytest.mark.parametrize('name', SCORED)
def test_wider_scopes_against_one_sort_of_all_scores(seen, name):
    cfg, params, stats = seen('gated')
    asked = prune.weights.request.weight_request(name, cfg)
    scores = {(i, s.leaf): asked.scores(s) for i in cfg.moe_layers
              for s in asked.stacks(stats, params, cfg, i)}
    for scope, pools in (('global', [list(scores)]), ('layer', [
            [key for key in scores if key[0] == i] for i in cfg.moe_layers])):
        plan = prune.sparsify(name, stats, params, cfg, scope=scope, sparsity=0.6)
        for pool in pools:
            flat = np.concatenate([scores[key].ravel() for key in pool])
            mask = np.ones(len(flat), bool)
            mask[np.argsort(flat, kind='stable')[:int(0.6 * len(flat))]] = False
            got = np.concatenate([kept(plan, i)[leaf].ravel() for i, leaf in pool])
            np.testing.assert_array_equal(got, mask)


@pytest.mark.parametrize('pattern', [(2, 4), (1, 2)])
@pytest.mark.parametrize('name', NAMES)
def test_patterns_of_consecutive_inputs(seen, name, pattern):
    cfg, params, stats = seen('gated')
    plan = prune.sparsify(name, stats, params, cfg, pattern=pattern)
    n, m = pattern
    for leaf, mask in kept(plan, 0).items():
        groups = mask.reshape(4, -1, m, mask.shape[2])
        assert (groups.sum(axis=2) == n).all(), leaf
    assert plan.options['pattern'] == f'{n}:{m}' and plan.options['sparsity'] == 1 - n / m


@pytest.mark.parametrize('name', NAMES)
def test_nothing_goes_at_zero_and_some_leaves_can_be_left_out(seen, name):
    cfg, params, stats = seen('gated')
    plan = prune.sparsify(name, stats, params, cfg, sparsity=0, leaves=['down', 'up'])
    assert list(plan.layers[0].masks) == ['up', 'down']
    assert all(mask.all() for mask in kept(plan, 0).values())
    sparse, _ = prune.apply(params, cfg, plan)
    for i in cfg.moe_layers:
        for leaf in LEAVES:
            np.testing.assert_allclose(matrices(sparse, i)[leaf], matrices(params, i)[leaf],
                                       rtol=1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_what_it_needs_is_what_it_reads(seen, name):
    """With the declared statistics alone it runs; without any one of them it is refused."""
    cfg, params, stats = seen('gated')
    needs = WEIGHT_METHODS[name].reads(prune.weight_options(name))

    def only(names):
        return moe_jax.Stats(stats.fingerprint, {g: {
            i: {n: a for n, a in sums.items() if n in names} for i, sums in layers.items()}
            for g, layers in stats.groups.items()})

    full = prune.sparsify(name, stats if needs else None, params, cfg)
    same_masks(full, prune.sparsify(name, only(needs) if needs else None, params, cfg))
    for missing in needs:
        with pytest.raises(ValueError, match=f"needs the statistic '{missing}'"):
            prune.sparsify(name, only([n for n in needs if n != missing]), params, cfg)


def test_observing_for_criteria_of_both_kinds():
    assert prune.observe_options('sparsegpt', 'gblm', 'reap') == {'grams': True, 'gradients': True}
    assert prune.observe_options('wanda') == {} == prune.observe_options('magnitude')
    assert prune.observe_options('gblm', norm='l2') == {'gradients': True}
    assert prune.observe_options('naee', 'sparsegpt', reservoir=9) == {
        'reservoir': 9, 'grams': True}
    assert not set(NAMES) & {row.name for row in prune.methods()}


REFUSED = {
    'method': ({'method': 'wnda'}, "did you mean 'wanda'"),
    'option': ({'min_token': 3}, "no option 'min_token'"),
    'option type': ({'min_tokens': 0.5}, 'must be an integer'),
    'sparsity of one': ({'sparsity': 1.0}, r'in \[0, 1\)'),
    'negative sparsity': ({'sparsity': -0.1}, r'in \[0, 1\)'),
    'nan': ({'sparsity': float('nan')}, r'in \[0, 1\)'),
    'scope': ({'scope': 'row'}, "scope='row'"),
    'pattern': ({'pattern': (4, 2)}, '1 <= n < m'),
    'no pattern': ({'pattern': '2:4'}, 'give .n, m.'),
    'pattern that does not divide': ({'pattern': (1, 3)}, '8 inputs, which do not divide by 3'),
    'pattern and scope': ({'pattern': (2, 4), 'scope': 'layer'}, "leave out scope='layer'"),
    'pattern and share': ({'pattern': (1, 4), 'sparsity': 0.5}, 'share of 0.75'),
    'leaf': ({'leaves': ['dwon']}, "did you mean 'down'"),
    'leaves as one word': ({'leaves': 'up'}, 'give a list'),
    'group': ({'group': 'c'}, "'c' is not in the statistics"),
    'solve and scope': ({'method': 'sparsegpt', 'scope': 'matrix'}, 'every output by itself'),
    'group of nothing': ({'method': 'magnitude', 'group': 'a'}, 'reads no statistics'),
    'block': ({'method': 'sparsegpt', 'block': 0}, 'block=0'),
    'damping': ({'method': 'sparsegpt', 'damping': -1.0}, '0 or more'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_refused(seen, case):
    cfg, params, stats = seen('gated')
    asked, match = REFUSED[case]
    with pytest.raises(ValueError, match=match):
        prune.sparsify(**{'method': 'wanda', **asked}, stats=stats, params=params, cfg=cfg)


def test_refused_models_and_statistics(seen):
    cfg, params, stats = seen('gated')
    with pytest.raises(ValueError, match='taken from another model'):
        prune.sparsify('wanda', stats, drawn(seed=9), cfg)
    with pytest.raises(ValueError, match=r'needs the statistics.*grams=True'):
        prune.sparsify('sparsegpt', None, params, cfg)
    with pytest.raises(ValueError, match=r"'input_gram'.*observe again with grams=True"):
        prune.sparsify('sparsegpt', observed(cfg, params), params, cfg)
    dense = cfg.replace(experts=(0, 0))
    with pytest.raises(ValueError, match='no layer of this model has experts'):
        prune.sparsify('magnitude', None, drawn(dense), dense)
    broken = jax.tree.map(lambda a: a * jnp.nan, params)
    with pytest.raises(ValueError, match='not finite'):
        prune.sparsify('magnitude', None, broken, cfg)


def test_a_group_of_the_statistics(seen):
    cfg, params, stats = seen('gated')
    alone = moe_jax.Stats(stats.fingerprint, {'b': stats.groups['b']})
    same_masks(prune.sparsify('wanda', stats, params, cfg, group='b'),
               prune.sparsify('wanda', alone, params, cfg))


@pytest.mark.parametrize(('name', 'options'), [
    ('wanda', {}), ('moe_pruner', {'pattern': (2, 4)}), ('sparsegpt', {'sparsity': 0.4}),
    ('wanda', {'scope': 'layer', 'leaves': ['up'], 'group': 'a'}),
])
def test_each_layer_is_observed_behind_the_sparse_ones(name, options):
    params = drawn()
    asked = prune.observe_options(name)
    calls = []
    found = prune.sparsify_layerwise(name, params, CFG, BATCHES, **options,
                                     progress=lambda *done: calls.append(done))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    at_once = prune.sparsify(name, observed(CFG, params, **asked), params, CFG, **options)
    eye = np.eye(4)
    first = prune.Plan(
        method=name, experts=CFG.experts, width=CFG.width, expert_hidden=CFG.expert_hidden,
        layers={0: at_once.layers[0], 2: prune.LayerPlan(mix=eye, router=eye)})
    half, _ = prune.apply(params, CFG, first)
    behind = prune.sparsify(name, observed(CFG, half, **asked), half, CFG, **options)
    for i, want in ((0, at_once.layers[0]), (2, behind.layers[2])):
        jax.tree.map(np.testing.assert_array_equal, found.plan.layers[i].masks, want.masks)
        # Inverting a Hessian carries the last bit of two programs' sums into the weights.
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
                     found.plan.layers[i].weights, want.weights)
    sparse, cfg = prune.apply(params, CFG, found.plan)
    assert cfg == found.cfg == CFG and found.plan.options['layerwise']
    jax.tree.map(np.testing.assert_array_equal, sparse, found.params)
    assert found.stats.fingerprint == fingerprint(params, CFG) == found.plan.model
    assert 'input_gram' not in found.stats.layer(0)
    assert np.isfinite(moe_jax.apply(cfg, sparse, TOKENS)).all()


@pytest.mark.parametrize(('name', 'options', 'match'), [
    ('wanda', {'scope': 'global'}, "scope='global'"), ('magnitude', {}, 'reads no statistics'),
    ('gblm', {}, 'reads gradients'), ('wanda', {'group': 'c'}, "'c' is not in the batches"),
])
def test_layer_by_layer_refuses(name, options, match):
    with pytest.raises(ValueError, match=match):
        prune.sparsify_layerwise(name, drawn(), CFG, BATCHES, **options)
