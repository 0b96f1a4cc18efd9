"""What is called pure is: under jit, vmap, grad and eval_shape, and of shapes alone.

E experts before, G after.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moe_jax
import prune
from moe_jax import Config
from prune import LayerPlan, Plan
from tests.matrix import rows
from tests.prune.foreign.foreign_layouts import LAYOUTS, Ours, own_subtrees, stacked

CFG = Config(vocab=29, positions=16, width=8, heads=2, mlp_hidden=8, expert_hidden=6,
             experts=(4, 0, 4), topk=1, capacity_eval=None)
RNG = np.random.default_rng(0)
PARAMS = moe_jax.init(CFG, jax.random.key(0))
PACKED = np.packbits(RNG.random((2, 8 * 6)) < 0.5, axis=1)
MERGE = RNG.dirichlet(np.ones(4), 2).astype(np.float32)
LAYERS = {
    'dropped': LayerPlan(mix=np.eye(4)[[1, 3]], router=np.eye(4)[[1, 3]]),
    'merged, units reordered': LayerPlan(
        mix=MERGE, router=MERGE, perms=np.stack([RNG.permutation(6) for _ in range(4)])),
    'router drawn afresh': LayerPlan(mix=MERGE, fresh=3),
    'shifted, masked': LayerPlan(mix=MERGE, router=MERGE, router_shift=RNG.normal(size=(2, 8)),
                                 masks={'up': PACKED}),
    'projected': LayerPlan(mix=MERGE, router=MERGE, rank=2),
}


@pytest.fixture(params=LAYERS)
def plan(request):
    """Made for PARAMS: it holds their fingerprint."""
    layer = LAYERS[request.param]
    return Plan(method='by hand', layers={0: layer, 2: layer}, experts=CFG.experts,
                width=CFG.width, expert_hidden=CFG.expert_hidden,
                model=moe_jax.observe(CFG, PARAMS, [{'tokens': np.ones((1, 4), int)}]).fingerprint)


def same(found, expected, **near):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **near), found, expected)


def shapes_of(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def test_apply_is_one_function_however_it_is_called(plan):
    expected, small = prune.apply(PARAMS, CFG, plan)

    def run(params):
        found, cfg = prune.apply(params, CFG, plan, donate=True)
        assert cfg == small
        return found

    near = {'rtol': 1e-5, 'atol': 1e-6}
    same(jax.jit(run)(PARAMS), expected, **near)
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), PARAMS)
    same(jax.tree.map(lambda leaf: leaf[0], jax.vmap(run)(twice)), expected, **near)
    for shapes in (jax.eval_shape(run, PARAMS), jax.eval_shape(run, shapes_of(PARAMS)),
                   prune.apply(shapes_of(PARAMS), CFG, plan)[0]):
        assert shapes == shapes_of(expected)
    assert prune.apply(shapes_of(PARAMS), CFG, plan)[1] == small


def test_gradients_reach_the_experts_that_a_plan_reads(plan):
    """Of a sum of what comes out: for each expert, the column of its shares, summed."""
    def total(params):
        return sum(leaf.sum() for leaf in jax.tree.leaves(
            prune.apply(params, CFG, plan)[0]['layer_2']['moe']['experts']['down_bias']))

    slope = jax.grad(total)(PARAMS)
    shares = plan.layers[2].mix.sum(axis=0)
    expected = np.repeat(shares[:, None], 8, axis=1)
    np.testing.assert_allclose(slope['layer_2']['moe']['experts']['down_bias'], expected, rtol=1e-6)
    assert not any(leaf.any() for leaf in jax.tree.leaves(slope['layer_0']))


def test_another_model_is_refused_where_its_weights_can_be_looked_at(plan):
    other = jax.tree.map(lambda leaf: leaf + 0.5, PARAMS)
    with pytest.raises(ValueError, match='made for other weights'):
        prune.apply(other, CFG, plan)
    with pytest.raises(ValueError, match='params and config disagree'):
        prune.apply(shapes_of(PARAMS), CFG.replace(experts=(4, 0, 5)), plan)


@pytest.mark.parametrize('order', [1, 2])
def test_moments_too(plan, order):
    moments = jax.tree.map(jnp.abs, PARAMS)

    def run(moments):
        return prune.apply_moments(moments, CFG, plan, order)

    expected = run(moments)
    same(jax.jit(run)(moments), expected, rtol=1e-5, atol=1e-6)
    assert run(shapes_of(moments)) == jax.eval_shape(run, moments) == shapes_of(expected)


@pytest.mark.parametrize('layout', rows(LAYOUTS, quick=[own_subtrees, stacked]),
                         ids=lambda layout: layout.__name__)
def test_foreign_trees_too(layout, draw):
    foreign, layers = LAYOUTS[layout], layout(Ours(LAYOUTS[layout].ffn, draw).layers)
    layers = jax.tree.map(jnp.asarray, layers)
    cfg, view = foreign.view(layers)
    plan = prune.plan('expert_norm', None, view, cfg, experts=3)
    expected = foreign.apply(layers, plan)

    def run(tree):
        return foreign.apply(tree, plan)

    same(jax.jit(run)(layers), expected)
    assert run(shapes_of(layers)) == jax.eval_shape(run, layers) == shapes_of(expected)
    shapes_cfg, shapes = foreign.view(shapes_of(layers))
    assert (shapes_cfg, shapes) == (cfg, shapes_of(view))
