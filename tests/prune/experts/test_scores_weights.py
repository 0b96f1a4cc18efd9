"""Rankings that read weights alone, against their papers' formulas, and AIMER's planted experiment.
"""

import importlib
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from moe_jax import Config
from moe_jax.model.decoder import shapes
from prune.inputs.method import Cost
from prune.subsets.top import top

WEIGHED = [('aimer', {'keep': 'low'}), ('aimer', {'keep': 'high'}), ('expert_norm', {}),
           ('router_norm', {}), ('router_change', {'delta': 'signed'}),
           ('router_change', {'delta': 'abs'})]
D = 5


@pytest.fixture(scope='module')
def config() -> Config:
    """Two MoE layers of different size."""
    return Config(vocab=8, positions=4, width=D, heads=1, mlp_hidden=4, expert_hidden=6,
                  experts=(7, 0, 6), topk=2, capacity_eval=None, ffn='swiglu')


def module(name: str):
    return importlib.import_module(f'prune.experts.methods.{name}')


def blank(config, dtype=np.float32):
    """Parameters of zeros, in numpy."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, dtype), shapes(config))


def draw_params(config, seed=0, dtype=np.float32):
    """Random MoE layers, biases too, each expert of its own scale and tails; the rest is zero."""
    rng, params = np.random.default_rng(seed), blank(config, dtype)
    for i in config.moe_layers:
        for leaves in params[f'layer_{i}']['moe'].values():
            for name, leaf in leaves.items():
                w = rng.normal(size=leaf.shape)
                power = np.linspace(1, 3, len(leaf)).reshape(-1, *[1] * (leaf.ndim - 1))
                leaves[name] = (0.3 * power * np.sign(w) * np.abs(w) ** power).astype(dtype)
    return params


def pooled(params, layer, e) -> np.ndarray:
    experts = params[f'layer_{layer}']['moe']['experts']
    return np.concatenate([np.asarray(experts[n][e]).astype(np.float64).ravel()
                           for n in ('gate', 'up', 'down')])


def row_norm(params, layer, e) -> float:
    kernel = np.asarray(params[f'layer_{layer}']['moe']['router']['kernel'])
    return math.sqrt(sum(float(w) ** 2 for w in kernel[e]))


@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_scores_of_weights_are_the_papers_formula(config, dtype):
    params, before = draw_params(config, 0, dtype), draw_params(config, 1, dtype)
    params['layer_2']['moe']['router']['kernel'] = jnp.asarray(
        params['layer_2']['moe']['router']['kernel'])
    params['layer_2']['moe']['experts']['up'] = jnp.asarray(
        params['layer_2']['moe']['experts']['up'])
    pools = {i: [pooled(params, i, e) for e in range(config.experts[i])]
             for i in config.moe_layers}
    ratio = {i: np.array([np.abs(w).mean() / np.sqrt((w**2).mean()) for w in p])
             for i, p in pools.items()}
    rows = {i: np.array([row_norm(params, i, e) for e in range(config.experts[i])])
            for i in config.moe_layers}
    change = {i: rows[i] - [row_norm(before, i, e) for e in range(config.experts[i])]
              for i in config.moe_layers}
    want = {
        ('aimer', 'low'): {i: 1 - r for i, r in ratio.items()}, ('aimer', 'high'): ratio,
        ('expert_norm', None): {i: np.array([np.linalg.norm(w) for w in p])
                                for i, p in pools.items()},
        ('router_norm', None): rows, ('router_change', 'signed'): change,
        ('router_change', 'abs'): {i: np.abs(c) for i, c in change.items()},
    }
    for name, options in WEIGHED:
        extra = {'before': before} if name == 'router_change' else {}
        found = module(name).scores({}, params, config, **options, **extra)
        assert list(found) == list(config.moe_layers)
        for i, score in found.items():
            assert score.dtype == np.float64
            np.testing.assert_allclose(score, want[name, next(iter(options.values()), None)][i],
                                       rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(('name', 'options'), WEIGHED)
def test_renaming_experts_renames_scores_of_weights(config, name, options):
    one, order = config.replace(experts=(7,)), np.random.default_rng(4).permutation(7)
    sets = [draw_params(one, seed) for seed in (0, 1)]
    renamed = [{**p, 'layer_0': {**p['layer_0'], 'moe': jax.tree.map(
        lambda leaf: leaf[order], p['layer_0']['moe'])}} for p in sets]
    found = []
    for params, before in (sets, renamed):
        extra = {'before': before} if name == 'router_change' else {}
        found.append(module(name).scores({}, params, one, **options, **extra)[0])
    np.testing.assert_array_equal(found[1], found[0][order])


@pytest.mark.parametrize(('name', 'options'), WEIGHED)
def test_equal_experts_tie_and_the_lower_index_stays(config, name, options):
    one, sets = config.replace(experts=(7,)), []
    for seed in (0, 1):
        params = draw_params(one, seed)
        moe = jax.tree.map(lambda leaf: leaf[[4] * 7], params['layer_0']['moe'])
        sets.append({**params, 'layer_0': {**params['layer_0'], 'moe': moe}})
    extra = {'before': sets[1]} if name == 'router_change' else {}
    score = module(name).scores({}, sets[0], one, **options, **extra)[0]
    assert len(set(score.tolist())) == 1 and score[0] != 0
    assert top(score, 3).tolist() == [0, 1, 2]


def test_a_router_that_shrank_goes_first_by_sign_and_stays_by_size(config):
    one, sets = config.replace(experts=(3,)), []
    for norms in ([2., 2, 2], [1., 2, 2.5]):
        params = blank(one)
        params['layer_0']['moe']['router']['kernel'] = np.outer(norms, np.eye(D)[0])
        sets.append(params)
    method, (before, after) = module('router_change'), sets
    for delta, want in (('signed', [-1, 0, .5]), ('abs', [1, 0, .5])):
        found = method.scores({}, after, one, before=before, delta=delta)
        np.testing.assert_allclose(found[0], want)


def test_router_change_needs_a_checkpoint_of_the_same_layout(cfg, draw):
    method, params = module('router_change'), draw(cfg)
    other = draw(cfg, 1)
    assert set(method.scores({}, params, cfg, before=other)) == {0, 2}
    with pytest.raises(ValueError, match=r'give before=.*router_norm'):
        method.scores({}, params, cfg)
    fewer = draw(cfg.replace(experts=(6, 0, 5)))
    with pytest.raises(ValueError, match=r'layer_2/moe/router/kernel has shape \(5, 16\)'):
        method.scores({}, params, cfg, before=fewer)
    moe = {**other['layer_2']['moe'], 'router': {}}
    headless = {**other, 'layer_2': {**other['layer_2'], 'moe': moe}}
    with pytest.raises(ValueError, match=r'before=.*layer_2/moe/router/kernel is missing'):
        method.scores({}, params, cfg, before=headless)


def test_weights_that_are_not_finite_are_refused(config):
    for leaf, names in (('experts', ('aimer', 'expert_norm')), ('router', ('router_norm',))):
        params = draw_params(config)
        array = params['layer_2']['moe'][leaf][{'experts': 'down', 'router': 'kernel'}[leaf]]
        for value in (np.nan, np.inf):
            array.reshape(6, -1)[4, 0] = value
            for name in names:
                with pytest.raises(ValueError, match=f'layer_2/moe/{leaf}.*expert 4.*finite'):
                    module(name).scores({}, params, config)


def test_aimer_by_hand(config):
    """One size of weights: 1. One weight of P: 1 / sqrt(P). Zeros have no ratio, and go first."""
    one = config.replace(experts=(3,))
    params = {'layer_0': {'moe': {'experts': {'up': np.zeros((3, 4, 2), np.float32),
                                              'down': np.zeros((3, 2, 4), np.float32)}}}}
    experts = params['layer_0']['moe']['experts']
    for leaf in experts.values():
        leaf[0] = 0.1
        leaf[0, 0] = -0.1
    experts['up'][1, 2, 1] = 7
    np.testing.assert_allclose(module('aimer').scores({}, params, one, keep='high')[0],
                               [1, 0.25, 0], atol=1e-12)
    np.testing.assert_allclose(module('aimer').scores({}, params, one)[0], [0, 0.75, 0],
                               atol=1e-7)


@pytest.mark.parametrize('start', ['normal', 'uniform'])
def test_aimer_keeps_the_experts_that_learned(config, start):
    """Half of the experts fit a teacher by gradient descent, the others stay as they were drawn."""
    rng, hidden = np.random.default_rng(0), 16
    draw = {'normal': rng.standard_normal, 'uniform': lambda s: rng.uniform(-1.7, 1.7, s)}[start]
    ups, downs, learned = 0.2 * draw((6, 12, hidden)), 0.2 * draw((6, hidden, 12)), [1, 2, 5]
    for e in learned:
        teacher = rng.normal(size=(12, 4)) * 0.4, rng.normal(size=(4, 12))
        for _ in range(200):
            x = rng.normal(size=(128, 12))
            h = np.maximum(x @ ups[e], 0)
            error = (h @ downs[e] - np.maximum(x @ teacher[0], 0) @ teacher[1]) / 128
            up_step = x.T @ ((error @ downs[e].T) * (h > 0))
            downs[e] -= 0.05 * h.T @ error
            ups[e] -= 0.05 * up_step
    params = {'layer_0': {'moe': {'experts': {'up': ups, 'down': downs}}}}
    one = config.replace(experts=(6,))
    assert top(module('aimer').scores({}, params, one)[0], 3).tolist() == learned
    kept = top(module('aimer').scores({}, params, one, keep='high')[0], 3).tolist()
    assert kept == [0, 3, 4]


@pytest.mark.parametrize('name', sorted({name for name, _ in WEIGHED}))
def test_no_statistics_are_declared(name):
    about = module(name).METHOD
    assert about.kind == 'drop' and about.paper and about.needs == ()
    assert about.cost is {'router_change': Cost.CHECKPOINTS}.get(name, Cost.WEIGHTS)
