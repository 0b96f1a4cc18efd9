"""Planning layer by layer: the plan is that of statistics taken behind the shrunk layers, and
progressive search is brute force against the original's outputs."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moe_jax
import prune
from moe_jax import Config
from moe_jax.calibration.block_pass import layer_config
from moe_jax.layers import ffn
from moe_jax.model.decoder import shapes
from moe_jax.model.fingerprint import fingerprint
from prune.plans.arrays import ARRAYS
from tests.matrix import rows

CFG = Config(
    vocab=64, positions=16, width=8, heads=2, mlp_hidden=8, expert_hidden=6, experts=(5, 0, 5),
    topk=2, gate='softmax_topk_renorm', ffn='swiglu', ffn_bias=False, capacity_eval=None,
    capacity_train=None, router_bias=True,
)
TOKENS = np.random.default_rng(0).integers(0, 64, (4, 16)).astype(np.int32)
BATCHES = [{'tokens': TOKENS[:2], 'mask': TOKENS[:2] >= 0},
           {'tokens': TOKENS[2:], 'mask': TOKENS[2:] >= 0}]
WISH = {'reservoir': 64}


@pytest.fixture(scope='module')
def params():
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype),
                        shapes(CFG))


def equal_layers(a, b):
    for field in ARRAYS:
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)


@pytest.mark.parametrize('name, options', rows([
    ('reap', {}), ('naee', {}), ('ream', {}), ('uncurl', {}),
    ('hc_smoe', {'router_init': 'reference'}),
    ('reap', {'gates': 'preserve_mass', 'replace': 'mean'}),
], quick=[('naee', {})]))
def test_each_layer_is_planned_on_what_the_shrunk_ones_before_it_give(params, name, options):
    found = prune.plan_layerwise(name, params, CFG, BATCHES, experts=3, **WISH, **options)
    wish = prune.observe_options(name, reservoir=64)
    # The first layer stands on unchanged ground.
    stats = moe_jax.observe(CFG, params, BATCHES, **wish)
    at_once = prune.plan(name, stats, params, CFG, experts=3, **options)
    equal_layers(found.plan.layers[0], at_once.layers[0])
    # The last one stands on the shrunk first layer: shrink that alone, and observe.
    first = prune.Plan(
        method=name, experts=CFG.experts, width=CFG.width, expert_hidden=CFG.expert_hidden,
        layers={0: at_once.layers[0], 2: prune.LayerPlan(mix=np.eye(5), router=np.eye(5))})
    half, half_cfg = prune.apply(params, CFG, first)
    seen = moe_jax.observe(half_cfg, half, BATCHES, **wish)
    view = {'layer_0': half['layer_2']}
    one = layer_config(half_cfg, 2)
    last = prune.plan(name, moe_jax.Stats(
        fingerprint(view, one),
        {g: {0: layers[2]} for g, layers in seen.groups.items()}, reservoir=seen.reservoir),
        view, one, experts=3, **options)
    equal_layers(found.plan.layers[2], last.layers[0])


def test_the_plan_on_the_original_is_the_smaller_model(params):
    found = prune.plan_layerwise('ream', params, CFG, BATCHES, experts=(2, 4), **WISH)
    small, cfg = prune.apply(params, CFG, found.plan)
    assert cfg == found.cfg and cfg.experts == (2, 0, 4)
    jax.tree.map(np.testing.assert_array_equal, small, found.params)
    assert found.stats.fingerprint == found.plan.model and found.plan.data == found.stats.data
    assert found.plan.options['layerwise'] and 'layer 2: 5 -> 4' in found.plan.describe()


def test_fewer_experts_than_a_token_uses_in_one_layer(params):
    found = prune.plan_layerwise('reap', params, CFG, BATCHES, experts=(1, 3), clamp=True)
    small, cfg = prune.apply(params, CFG, found.plan)
    assert cfg == found.cfg and cfg.topk == 2 and cfg.clamp
    logits = moe_jax.apply(cfg, small, TOKENS)
    np.testing.assert_array_equal(logits, moe_jax.apply(found.cfg, found.params, TOKENS))


def test_an_amount_counts_the_constants_that_a_method_leaves(params):
    at_once = prune.plan('mone', moe_jax.observe(CFG, params, BATCHES), params, CFG,
                         parameters=3400)
    found = prune.plan_layerwise('mone', params, CFG, BATCHES, parameters=3400)
    assert [found.plan.layers[i].after for i in (0, 2)] == [
        at_once.layers[i].after for i in (0, 2)]
    assert sum(leaf.size for leaf in jax.tree.leaves(found.params)) <= 3400


def moe_outputs(params, record, layer, kept):
    """What the layer's MoE gives with `kept` experts alone, [N, D], in numpy from its inputs."""
    moe = params[f'layer_{layer}']['moe']
    x, z = np.asarray(record.inputs, np.float64), np.asarray(record.logits, np.float64)
    y = np.asarray(jax.vmap(ffn.of(CFG), in_axes=(0, None))(moe['experts'], record.inputs))
    z = np.where(np.isin(np.arange(5), kept), z, -np.inf)
    out = np.zeros_like(x)
    for n in range(len(x)):
        best = np.argsort(-z[n], kind='stable')[:2]
        g = np.exp(z[n, best] - z[n, best].max())
        out[n] = (g / g.sum()) @ y[best, n]
    return out


@pytest.mark.full
def test_progressive_search_is_brute_force_against_the_original(params):
    """min over subsets of |F_D(X') - Z|^2, Z the original's outputs (Lu et al. 2024, 3.2)."""
    found = prune.plan_layerwise('naee', params, CFG, BATCHES, targets=True, experts=3, **WISH)
    run = jax.jit(moe_jax.forward, static_argnums=0, static_argnames='watch')
    whole = run(CFG, params, TOKENS, watch=('routing',))[1]['routing']
    first = prune.Plan(
        method='naee', experts=CFG.experts, width=CFG.width, expert_hidden=CFG.expert_hidden,
        layers={0: found.plan.layers[0], 2: prune.LayerPlan(mix=np.eye(5), router=np.eye(5))})
    half, half_cfg = prune.apply(params, CFG, first)
    behind = run(half_cfg, half, TOKENS, watch=('routing',))[1]['routing']
    for layer, record in ((0, whole[0]), (2, behind[2])):
        goal = moe_outputs(params, whole[layer], layer, range(5))
        errors = {kept: ((moe_outputs(params, record, layer, kept) - goal) ** 2).sum()
                  for kept in itertools.combinations(range(5), 3)}
        chosen = found.plan.layers[layer].mix.argmax(axis=1)
        assert tuple(chosen) == min(errors, key=errors.get)


@pytest.mark.parametrize('name, options, message', [
    ('reap', {'targets': True}, 'does not reconstruct'),
    ('random', {}, 'reads no statistics'),
    ('reap', {'experts': 1}, 'cannot keep 1'),
    ('reap', {'ratio': 0.5, 'experts': 3}, 'exactly one'),
    ('reap', {'spread': 'global'}, "spread='global' compares layers"),
    ('reap', {'first_layer': 'keep'}, "first_layer='keep' compares layers"),
    ('reap', {'gates': 'slise'}, "gates='slise'"),
    ('m_smoe', {'gates': 'preserve_mass'}, 'for methods that drop'),
    ('reap', {'gate': 'slice'}, "no option 'gate'"),
])
def test_what_makes_no_sense_is_refused_before_anything_runs(params, name, options, message):
    def never():
        raise AssertionError('read')
        yield

    with pytest.raises(ValueError, match=message):
        prune.plan_layerwise(name, params, CFG, never(), **{'experts': 3} | options)


def test_models_merged_before_and_groups_that_are_not_there_are_refused(params):
    shared = CFG.replace(aliases=((0, 1, 2, 0, 1), None, None), experts=(3, 0, 5))
    with pytest.raises(ValueError, match=r'layers \[0\] already share'):
        prune.plan_layerwise('reap', params, shared, iter(()), experts=3)
    with pytest.raises(ValueError, match="group 'b' is not in the batches"):
        prune.plan_layerwise('reap', params, CFG, BATCHES, experts=3, group='b')


def test_what_is_recorded_is_what_a_plan_at_once_records(params):
    at_once = prune.plan('mone', moe_jax.observe(CFG, params, BATCHES), params, CFG, experts=3)
    found = prune.plan_layerwise('mone', params, CFG, BATCHES, experts=3)
    assert found.plan.options == at_once.options | {'layerwise': True, 'targets': False}


@pytest.mark.full
def test_a_clamped_model_is_shrunk_further(params):
    small, cfg = prune.apply(params, CFG, prune.plan('expert_norm', None, params, CFG,
                                                     experts=(1, 4), clamp=True))
    found = prune.plan_layerwise('reap', small, cfg, BATCHES, experts=(1, 3))
    assert found.cfg.experts == (1, 0, 3) and found.cfg.clamp
    evolved = prune.evolve('reap', moe_jax.observe(cfg, small, BATCHES), small, cfg, BATCHES,
                           experts=(1, 2), population=3, generations=1)
    assert sum(evolved.experts) == 3


def test_that_gates_grow_is_told_once_for_all_layers(params):
    cfg = CFG.replace(gate='softmax_topk')
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        prune.plan_layerwise('expert_drop', params, cfg, BATCHES, experts=3)
    grown = [str(one.message) for one in told if 'gates of kept experts grow' in str(one.message)]
    assert len(grown) == 1 and '2 layers in all' in grown[0]
