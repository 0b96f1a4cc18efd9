"""One contract for every method in the table, through models and statistics of every odd form.

Plans are checked as arrays; `apply` is run on each, and one form per method goes through the model.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moe_jax
import prune
from moe_jax import Config, Stats
from moe_jax.base.tree import at, take
from moe_jax.calibration.table import statistic
from moe_jax.model.decoder import shapes
from moe_jax.model.fingerprint import fingerprint
from prune.experts.methods import METHODS
from prune.experts.routers import ROUTER_NEEDS
from prune.plans.arrays import ARRAYS
from prune.similarity.cluster import CENTER_NEEDS
from tests import matrix

BASE = Config(
    vocab=64, positions=16, width=8, heads=2, mlp_hidden=8, expert_hidden=6,
    experts=(6, 0, 6), capacity_eval=None, topk=2, gate='softmax_topk_renorm', ffn_bias=False,
)
FORMS = {
    'plain': BASE,
    'top-1 Switch with biases': BASE.replace(topk=1, gate='softmax_topk', ffn='gelu',
                                             ffn_bias=True),
    'shared expert, router bias, uneven, dense first': BASE.replace(
        experts=(0, 6, 4), ffn='swiglu', shared_hidden=4, router_bias=True, gate='softmax_topk'),
    'groups and correction': BASE.replace(
        experts=(8, 8), groups=2, groups_used=2, correction=True, gate='sigmoid_topk_renorm',
        ffn='swiglu'),
    'bfloat16': BASE.replace(ffn='swiglu', dtype='bfloat16'),
}


def drawn(cfg, seed=0):
    rng = np.random.default_rng(seed)
    dtype = jnp.dtype(cfg.dtype)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), dtype),
                        shapes(cfg))


@pytest.fixture(scope='module')
def seen():
    """seen(form): config, parameters and statistics with all that any method asks for."""
    tokens = np.random.default_rng(0).integers(0, 64, (4, 16)).astype(np.int32)
    wish = prune.observe_options(*METHODS, reservoir=16)
    found = {}

    def observe(form):
        if form not in found:
            cfg = FORMS[form]
            params = drawn(cfg)
            batches = [{'tokens': part, 'mask': part >= 0, 'group': group}
                       for part, group in ((tokens[:2], 'a'), (tokens[2:], 'b'))]
            found[form] = cfg, params, moe_jax.observe(cfg, params, batches, **wish)
        return found[form]

    return observe


def options_of(name, params):
    """What a method cannot do without: here the checkpoint before fine-tuning."""
    if name != 'router_change':
        return {}
    return {'before': jax.tree.map(lambda leaf: leaf * jnp.asarray(0.5, leaf.dtype), params)}


def plan_of(name, seen, **budget):
    cfg, params, stats = seen
    return prune.plan(name, stats, params, cfg, **options_of(name, params), **budget)


def same(a, b):
    for i, layer in a.layers.items():
        for field in (*ARRAYS, 'fresh'):
            np.testing.assert_array_equal(getattr(layer, field), getattr(b.layers[i], field))


def sound(plan, cfg, params, total=None):
    """The plan's arrays make sense, and the parameters it gives are the model it says."""
    for layer in plan.layers.values():
        np.testing.assert_allclose(layer.mix.sum(axis=1), 1, atol=1e-5)
        assert 1 <= layer.after <= layer.before
    assert total is None or sum(layer.after for layer in plan.layers.values()) == total
    small, small_cfg = prune.apply(params, cfg, plan)
    assert small_cfg == small_cfg.fit(small)
    want = shapes(small_cfg)
    assert jax.tree.map(lambda a: a.shape, small) == jax.tree.map(lambda a: a.shape, want)
    assert all(leaf.dtype == jnp.dtype(cfg.dtype) for leaf in jax.tree.leaves(small))
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(small))
    return small, small_cfg


@pytest.mark.parametrize('form', matrix.rows(FORMS, ('plain',)))
@pytest.mark.parametrize('name', list(METHODS))
def test_every_form_of_model(seen, name, form):
    cfg, params, _ = model = seen(form)
    before = jax.tree.map(np.array, params)
    try:
        plan = plan_of(name, model, experts=4)
    except ValueError as error:  # merging across router groups, which a reduced router cannot say
        assert cfg.groups > 1 and 'router groups' in str(error) and METHODS[name].form == 'plan'
        return
    same(plan, plan_of(name, model, experts=4))
    sound(plan, cfg, params, 4 * len(cfg.moe_layers))
    jax.tree.map(np.testing.assert_array_equal, params, before)


@pytest.mark.parametrize('name', list(METHODS))
def test_keeping_all_is_the_identity(seen, name):
    cfg, params, _ = model = seen('plain')
    small, small_cfg = prune.apply(params, cfg, plan_of(name, model, experts=6))
    assert small_cfg == cfg
    jax.tree.map(np.testing.assert_array_equal, small, params)


@pytest.mark.parametrize('name', list(METHODS))
def test_one_expert_and_fewer_than_a_token_uses(seen, name):
    cfg, params, _ = model = seen('plain')
    with pytest.raises(ValueError, match='cannot keep 1 experts'):
        plan_of(name, model, experts=1)
    _, small = sound(plan_of(name, model, experts=1, clamp=True), cfg, params)
    assert sum(small.experts) == 2 and small.topk_in(0) <= small.router_rows(0)
    cfg, params, _ = model = seen('top-1 Switch with biases')
    sound(plan_of(name, model, experts=1), cfg, params, 2)


@pytest.mark.parametrize('name', list(METHODS))
def test_unused_experts_and_ties(seen, name):
    """No traffic at all, all of it on one expert, and experts that nothing tells apart."""
    cfg, params, stats = seen('plain')
    for counts in (np.zeros(6), np.eye(6)[4] * 64, np.full(6, 8.0)):
        groups = {group: {i: edited(layer, counts) for i, layer in layers.items()}
                  for group, layers in stats.groups.items()}
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            tied = cfg, params, Stats(stats.fingerprint, groups, data=stats.data,
                                      reservoir=stats.reservoir)
            for experts in (3, 6):
                sound(plan_of(name, tied, experts=experts), cfg, params, 2 * experts)


def edited(layer, counts):
    """Sums per expert in proportion to `counts`, and Grams that are flat."""
    found = dict(layer)
    for name, value in layer.items():
        if name.startswith('sample_') or value.dtype.kind != 'f' or 6 not in value.shape:
            continue
        axis = value.shape.index(6)
        flat = np.ones_like(value).mean(axis=axis, keepdims=True)
        shape = [6 if a == axis else 1 for a in range(value.ndim)]
        found[name] = np.broadcast_to(flat, value.shape) * counts.reshape(shape)
    found |= {name: counts.astype(np.int64) for name in ('count', 'count_top1')}
    return found | {'logit_gram': np.full((6, 6), 9.0), 'logit_sum': np.full(6, 3.0)}


@pytest.mark.parametrize('name', [n for n, m in METHODS.items() if m.needs])
def test_statistics_that_are_not_finite_are_refused(seen, name):
    cfg, params, stats = seen('plain')
    for needed in METHODS[name].needs:
        group = next(iter(stats.groups))
        layers = stats.groups[group]
        value = layers[2][needed].astype(np.float64)
        value = np.where(np.arange(value.size).reshape(value.shape) == 0, np.nan, value)
        broken = {**stats.groups, group: {**layers, 2: {**layers[2], needed: value}}}
        with pytest.raises(ValueError, match=f"'{needed}' of layer 2 has values that are not fin"):
            bad = Stats(stats.fingerprint, broken, reservoir=stats.reservoir)
            plan_of(name, (cfg, params, bad), experts=3)
        missing = {i: {k: v for k, v in layer.items() if k != needed}
                   for i, layer in layers.items()}
        with pytest.raises(ValueError, match=f"'{needed}', which layer 0 lacks"):
            few = Stats(stats.fingerprint, {group: missing})
            plan_of(name, (cfg, params, few), experts=3)


@pytest.mark.parametrize('name', [n for n in METHODS if n not in ('random', 'eep', 'sub_moe')])
def test_renaming_experts_renames_the_decision(seen, name):
    """The same experts under other numbers: the same ones are kept, or merged together.

    Not of random choice, nor of seeded noise (eep) or seeded centers of k-means (sub_moe).
    """
    cfg, params, stats = seen('plain')
    apart = {'count_top1': np.array([5, 9, 2, 14, 7, 11])}  # ties go by the number
    groups = {g: {i: layer | apart for i, layer in layers.items()}
              for g, layers in stats.groups.items()}
    stats = Stats(stats.fingerprint, groups, reservoir=stats.reservoir)
    order = np.random.default_rng(3).permutation(6)
    renamed = params
    for i in cfg.moe_layers:
        renamed = at(renamed, f'layer_{i}/moe', lambda moe: take(moe, order))
    groups = {g: {i: moved(layer, order) for i, layer in layers.items()}
              for g, layers in stats.groups.items()}
    other = cfg, renamed, Stats(fingerprint(renamed, cfg), groups,
                                reservoir=stats.reservoir)
    before = plan_of(name, (cfg, params, stats), experts=3)
    after = plan_of(name, other, experts=3)
    for i in cfg.moe_layers:
        together = before.layers[i].mix.T @ before.layers[i].mix
        found = after.layers[i].mix.T @ after.layers[i].mix
        np.testing.assert_allclose(found, together[np.ix_(order, order)], atol=1e-5)


def moved(layer, order):
    found = {}
    for name, value in layer.items():
        for axis, letter in enumerate(statistic(name).shape):
            value = np.take(value, order, axis=axis) if letter == 'R' else value
        found[name] = value
    return found


@pytest.mark.parametrize('name', list(METHODS))
def test_the_model_that_comes_out_runs(seen, name):
    cfg, params, _ = model = seen('plain')
    small, small_cfg = sound(plan_of(name, model, experts=[3, 3], **(
        {'spread': 'layer'} if METHODS[name].kind == 'drop' else {})), cfg, params)
    tokens = np.arange(32, dtype=np.int32).reshape(2, 16)
    logits = moe_jax.apply(small_cfg, small, tokens)
    assert logits.shape == (2, 16, 64) and np.isfinite(logits).all()


@pytest.mark.parametrize('name', list(METHODS))
def test_the_table_says_what_a_method_is(name):
    method = METHODS[name]
    assert method.name == name and method.kind in ('drop', 'merge')
    assert method.doc.splitlines()[0].rstrip('.')
    # An option that other files define reads what they say, whatever the method.
    for option, table in (('center', CENTER_NEEDS), ('router_init', ROUTER_NEEDS)):
        assert (option in method.options) == (method.option_needs.get(option) is table)
