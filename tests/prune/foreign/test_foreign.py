"""Laws of foreign trees: a model of ours in another's layout gives what ours gives."""

import dataclasses
from collections import defaultdict, namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import prune
from moe_jax import Stats
from moe_jax.calibration.observe_inputs import observe_inputs
from moe_jax.calibration.table import statistic
from prune import Foreign, Leaf
from prune.foreign import leaves
from tests.prune.foreign.foreign_layouts import (
    EXPERTS,
    GATED,
    LAYERS,
    LAYOUTS,
    Ours,
    layers_of,
    middle_transposed,
    own_subtrees,
    stacked,
)

each_layout = pytest.mark.parametrize('layout', LAYOUTS, ids=lambda layout: layout.__name__)


@pytest.fixture(scope='module')
def ours(draw):
    models = {ffn: Ours(ffn, draw) for ffn in ('gelu', 'swiglu')}
    return lambda layout: models[LAYOUTS[layout].ffn]


def same(a, b, rtol=0.0):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and type(x) is type(y)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol)


@each_layout
def test_the_view_is_the_model_itself(ours, layout):
    model = ours(layout)
    cfg, view = LAYOUTS[layout].view(layout(model.layers))
    assert cfg.experts == (EXPERTS, EXPERTS) and cfg.moe_layers == (0, 1)
    for name in ('width', 'expert_hidden', 'topk', 'gate', 'ffn', 'ffn_bias', 'capacity_eval'):
        assert getattr(cfg, name) == getattr(model.cfg, name)
    same(jax.tree.map(np.asarray, [view[f'layer_{i}']['moe'] for i in range(2)]), model.layers)


@each_layout
def test_statistics_are_those_of_the_whole_model(ours, layout):
    model, moe = ours(layout), LAYOUTS[layout]
    found = moe.observe(layout(model.layers), model.inputs, **model.options)
    assert found.data == model.stats.data and found.reservoir == 10
    for group in ('code', 'drama'):
        for i, j in enumerate(LAYERS):
            a, b = found.layer(i, group), model.stats.layer(j, group)
            assert set(a) == set(b)
            assert np.isnan(a['stream_cosine'])
            for name in set(a) - {'stream_cosine'}:
                exact = statistic(name).kind in ('count', 'tally') or name == 'sample_key'
                assert a[name].dtype == b[name].dtype
                size = 0 if exact or not b[name].size else 1e-5 * np.abs(b[name]).max()
                np.testing.assert_allclose(a[name], b[name], rtol=0, atol=size, err_msg=name)


PLANS = {
    'reap': {}, 'frequency': {}, 'naee': {},
    'm_smoe': {'router_init': 'freq_mean', 'selection': 'per_layer'},
    'uncurl': {'router_init': 'logsumexp'},
}


@each_layout
@pytest.mark.parametrize('name', PLANS)
def test_the_smaller_tree_is_the_smaller_model(ours, layout, name):
    model, moe = ours(layout), LAYOUTS[layout]
    tree = layout(model.layers)
    before = jax.tree.map(np.copy, tree)
    cfg, view = moe.view(tree)
    stats = moe.observe(tree, model.inputs, reservoir=10)
    plan = prune.plan(name, stats, view, cfg, experts=3, **PLANS[name])
    if name in ('m_smoe', 'uncurl'):  # or else this would not see whether hidden units follow
        assert any((np.diff(layer.perms) < 0).any() for layer in plan.layers.values())
    small = moe.apply(tree, plan)
    theirs = prune.plan(name, model.stats, model.params, model.cfg, experts=3, **PLANS[name])
    expected, _ = prune.apply(model.params, model.cfg, theirs)
    same(small, layout(layers_of(expected)), rtol=0 if name in ('reap', 'frequency') else 1e-5)
    same(tree, before)
    again, _ = moe.view(small)
    assert again.experts == (3, 3)


def test_layers_of_their_own_may_keep_different_numbers(ours):
    model, moe = ours(own_subtrees), LAYOUTS[own_subtrees]
    tree = own_subtrees(model.layers)
    cfg, view = moe.view(tree)
    stats = moe.observe(tree, model.inputs)
    small = moe.apply(tree, prune.plan('frequency', stats, view, cfg, experts=[2, 5]))
    assert list(small['blocks'][0][1]) == ['experts_0', 'experts_1']
    assert moe.view(small)[0].experts == (2, 5)


def test_a_bias_of_the_router_and_its_correction_follow():
    rng = np.random.default_rng(0)
    tree = {'router': {'w': rng.normal(size=(4, 8)), 'b': rng.normal(size=8),
                       'balance': rng.normal(size=8)},
            'up': rng.normal(size=(8, 4, 3)), 'down': rng.normal(size=(8, 3, 4)),
            'down_bias': rng.normal(size=(8, 4))}
    tree = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), tree)
    moe = Foreign(layers=[''], router=Leaf('router/w', axis=1), router_bias=Leaf('router/b'),
                  correction=Leaf('router/balance'), topk=2, gate='sigmoid_topk_renorm', ffn='gelu',
                  groups=2, groups_used=1, dtype='bfloat16',
                  experts={name: Leaf(name) for name in ('up', 'down', 'down_bias')})
    cfg, view = moe.view(tree)
    assert not np.asarray(view['layer_0']['moe']['experts']['up_bias']).any()
    stats = moe.observe(tree, [{'': rng.normal(size=(50, 4)).astype(np.float32)}])
    plan = prune.plan('frequency', stats, view, cfg, experts=4)
    kept = plan.layers[0].mix.argmax(axis=1)
    same(moe.apply(tree, plan), {
        'router': {'w': tree['router']['w'][:, kept], 'b': tree['router']['b'][kept],
                   'balance': tree['router']['balance'][kept]},
        **{name: tree[name][kept] for name in ('up', 'down', 'down_bias')}})


def test_the_sample_without_tokens(ours, tmp_path):
    model, moe = ours(stacked), LAYOUTS[stacked]
    tree = stacked(model.layers)
    batches = [{'scan/moe': np.stack([b[0], b[1]]), 'mask': b['mask']} for b in model.inputs]
    stats = moe.observe(tree, batches, reservoir=30)
    for i in range(2):
        read = np.concatenate([b['scan/moe'][i][b['mask']] for b in batches])
        sampled = stats.layer(i)['sample_input']
        assert len(sampled) == 30 == len(np.unique(stats.layer(i)['sample_key']))
        assert (sampled[:, None] == read[None]).all(axis=-1).any(axis=-1).all()
        assert stats.layer(i)['vocab'].shape == (0, 3)
    swapped = moe.observe(tree, batches[::-1], reservoir=30)
    added = moe.observe(tree, batches[:1], reservoir=30) + moe.observe(tree, batches[1:],
                                                                      reservoir=30)
    for other in (swapped, added):
        assert other.data == stats.data
        for name in ('sample_key', 'sample_input', 'count'):
            np.testing.assert_array_equal(other.layer(1)[name], stats.layer(1)[name])
    stats.save(tmp_path / 'stats.npz')
    np.testing.assert_array_equal(Stats.load(tmp_path / 'stats.npz').layer(0)['moments'],
                                  stats.layer(0)['moments'])


def changed(layout, **fields):
    return dataclasses.replace(LAYOUTS[layout], **fields)


@pytest.mark.parametrize(('fields', 'message'), [
    ({'layers': ['moe_0', 'mo_1']}, "no array 'mo_1/wg'; near: moe_1/wg"),
    ({'router': Leaf('w', axis=1)}, "no array 'moe_0/w'; near: moe_0/wg"),
    ({'experts': {name: Leaf(name, axis=2, transposed=True) for name in GATED}},
     r'moe_0/up: shape \(5, 6, 8\) .* \[6, 8, any\]; axis=1, transposed=True would'),
    ({'experts': {name: Leaf(name, axis=1) for name in GATED}}, 'axis=1, transposed=True would'),
    ({'experts': {name: Leaf(name, axis=3) for name in GATED}}, 'axis=1, transposed=True would'),
    ({'router': Leaf('wg')}, r'moe_0/up: shape .* \[8, 6, any\]; .* would'),
    ({'topk': 7}, 'moe_0/wg reads as 6 experts of width 8, and a token uses topk=7'),
])
def test_descriptions_that_do_not_fit_the_tree(ours, fields, message):
    tree = middle_transposed(ours(middle_transposed).layers)
    with pytest.raises(ValueError, match=message):
        changed(middle_transposed, **fields).view(tree)


@pytest.mark.parametrize(('fields', 'message'), [
    ({'layers': 'moe_0'}, 'a list of the paths'),
    ({'layers': ['moe_0', 'moe_0']}, 'each once'),
    ({'gate': 'softmax'}, 'did you mean .* valid: softmax_topk'),
    ({'ffn': 'tanh'}, 'valid: gelu, relu, swiglu'),
    ({'experts': {'up': Leaf('up')}}, r"needs \['down', 'gate', 'up'\]"),
    ({'router': Leaf('wg/{e}')}, 'one array'),
])
def test_descriptions_that_make_no_model(fields, message):
    with pytest.raises(ValueError, match=message):
        changed(middle_transposed, **fields)


def test_an_array_for_each_expert_has_no_expert_axis():
    with pytest.raises(ValueError, match='or axis=, one array for all'):
        Leaf('experts_{e}/w', axis=1)


def test_experts_must_be_described_whole(ours):
    tree = own_subtrees(ours(own_subtrees).layers)
    tree['blocks'][1][1]['experts_2']['norm'] = np.ones(8)
    with pytest.raises(ValueError, match=r'not described: blocks/1/1/experts_2/norm'):
        LAYOUTS[own_subtrees].view(tree)
    tree = own_subtrees(ours(own_subtrees).layers)
    tree['blocks'][0][1]['experts_6'] = tree['blocks'][0][1]['experts_0']
    with pytest.raises(ValueError, match=r'experts_6/.* the router chooses among 6'):
        LAYOUTS[own_subtrees].view(tree)


@pytest.mark.parametrize(('name', 'options', 'cure'), [
    ('m_smoe', {}, "router_init='reference'"),
    ('reap', {'replace': 'mean'}, "replace='none'"),
    ('reap', {'gates': 'preserve_mass'}, "gates='slice'"),
])
def test_plans_that_a_foreign_router_cannot_hold(ours, name, options, cure):
    model = ours(middle_transposed)
    moe = changed(middle_transposed, gate='softmax_topk')
    tree = middle_transposed(model.layers)
    cfg, view = moe.view(tree)
    plan = prune.plan(name, moe.observe(tree, model.inputs), view, cfg, experts=3, **options)
    with pytest.raises(ValueError, match=cure):
        moe.apply(tree, plan)


def test_stacked_layers_keep_equally_many(ours):
    model, moe = ours(stacked), LAYOUTS[stacked]
    tree = stacked(model.layers)
    cfg, view = moe.view(tree)
    plan = prune.plan('reap', moe.observe(tree, model.inputs), view, cfg, experts=[3, 4])
    with pytest.raises(ValueError, match=r"leaves \[3, 4\] experts .*'scan/moe'; plan with one"):
        moe.apply(tree, plan)


def test_a_plan_below_topk_is_refused(ours):
    moe, tree = LAYOUTS[middle_transposed], middle_transposed(ours(middle_transposed).layers)
    cfg, view = moe.view(tree)
    plan = prune.plan('expert_norm', None, view, cfg, experts=[1, 3], clamp=True)
    with pytest.raises(ValueError, match=r'leaves layers \[0\] fewer experts .*topk=2'):
        moe.apply(tree, plan)


def test_a_plan_of_other_weights_is_refused(ours):
    moe, tree = LAYOUTS[stacked], stacked(ours(stacked).layers)
    plan = prune.plan('expert_norm', None, *reversed(moe.view(tree)), experts=3)
    with pytest.raises(ValueError, match='other weights of the same shape'):
        moe.apply(jax.tree.map(lambda a: a + 1, tree), plan)


def test_arrays_of_float64_are_refused(ours):
    tree = jax.tree.map(lambda a: np.asarray(a, np.float64), stacked(ours(stacked).layers))
    with pytest.raises(ValueError, match='cast them to float32'):
        LAYOUTS[stacked].view(tree)


def test_subtrees_in_a_defaultdict_and_in_what_cannot_lose_a_field():
    grown = defaultdict(dict, {'e_0': {'w': 1}, 'e_1': {'w': 2}})
    small = leaves.without({'a': grown}, {'a/e_1'})
    assert small == {'a': {'e_0': {'w': 1}}} and type(small['a']) is defaultdict
    pair = namedtuple('pair', 'e_0 e_1')(1, 2)
    with pytest.raises(ValueError, match='must stand in dicts or lists, not in a pair'):
        leaves.without({'a': pair}, {'a/e_1'})


@pytest.mark.parametrize(('edit', 'options', 'message'), [
    (lambda b: {0: b[0]}, {}, r'no inputs of MoE layers \[1\]'),
    (lambda b: {0: b[0], 1: b[1][..., :4]}, {}, r'must be \[..., 8\]'),
    (lambda b: {0: b[0], 1: b[1][:2]}, {}, 'one leading shape in all layers'),
    (lambda b: {0: b[0], 1: b[1], 'mask': b['mask'][0]}, {}, 'mask is bool'),
    (lambda b: {0: b[0], 1: b[1], 'tokens': b[0][..., 0]}, {}, 'tokens is float32'),
    (lambda b: {0: b[0], 1: b[1], 'mask': np.zeros((4, 12), bool)}, {}, 'no valid token'),
    (lambda b: {0: b[0] * np.nan, 1: b[1]}, {}, 'not finite'),
    (lambda b: b, {'gradients': True}, 'gradients need the whole model'),
    (lambda b: {'scan/moe': np.stack([b[0]] * 3)}, {}, 'must be its 2 layers'),
])
def test_inputs_that_cannot_be_observed(ours, edit, options, message):
    model, moe = ours(stacked), LAYOUTS[stacked]
    with pytest.raises(ValueError, match=message):
        moe.observe(stacked(model.layers), map(edit, model.inputs), **options)


def test_inputs_of_a_model_of_ours_and_tokens_in_one_row(ours):
    model = ours(stacked)
    batch = model.inputs[0]
    flat = {0: batch[0].reshape(-1, 8), 2: batch[1].reshape(-1, 8), 'mask': batch['mask'].ravel()}
    found = observe_inputs(model.cfg, model.params, [flat]).layer(2)
    wanted = model.stats.layer(2, 'code')
    np.testing.assert_array_equal(found['count'], wanted['count'])
    np.testing.assert_allclose(found['moments'], wanted['moments'], rtol=1e-5)
