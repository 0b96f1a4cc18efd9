"""How much stays and where: by hand, by brute force, and against the size of the model made."""

import itertools
import warnings

import jax
import numpy as np
import pytest

import prune
from moe_jax import Config
from moe_jax.base.tree import count_bytes, count_params
from moe_jax.routing.designs.top_k import choose
from prune.budget import spread

SCORES = {0: np.array([4.0, 1.0, 3.0, 2.0]), 2: np.array([1.0, 1.0, 7.0, 1.0])}


def test_units_of_router_groups_by_hand():
    found = spread.units({0: np.array([1.0, 5, 2, 3, 0, 4])}, groups=2)
    np.testing.assert_array_equal(found[0], [5 + 4, 2 + 3, 1 + 0])


def test_pooled_spreads_by_hand():
    values = spread.units(SCORES, 1)
    floors = {0: 1, 2: 1}
    assert spread.pooled(values, 4, floors, 'global') == {0: 3, 2: 1}
    assert spread.pooled(values, 3, {0: 2, 2: 1}, 'global') == {0: 2, 2: 1}
    # Shares: .4 .3 .2 .1 and .7 .1 .1 .1; ties go to the lower layer.
    assert spread.pooled(values, 4, floors, 'share') == {0: 3, 2: 1}
    assert spread.pooled(values, 5, floors, 'share') == {0: 4, 2: 1}
    # Mass held by better ones: 0 .4 .7 .9 and 0 .7 .8 .9.
    assert spread.pooled(values, 3, floors, 'mass') == {0: 2, 2: 1}
    assert spread.pooled(values, 5, floors, 'mass') == {0: 3, 2: 2}
    assert spread.pooled(values, 6, floors, 'mass') == {0: 3, 2: 3}
    with pytest.raises(ValueError, match=r'2 \(the floors\) to 8'):
        spread.pooled(values, 1, floors, 'mass')


@pytest.mark.parametrize('seed', range(5))
def test_mass_is_the_threshold_of_nllb_pruning(seed):
    """The least t at which the experts whose better ones hold less than t number M or more."""
    rng = np.random.default_rng(seed)
    scores = {i: rng.random(5) for i in range(3)}
    shares = {i: np.sort(s / s.sum())[::-1] for i, s in scores.items()}
    before = {i: np.cumsum(s) - s for i, s in shares.items()}
    for total in range(6, 15):
        found = spread.pooled(spread.units(scores, 1), total, dict.fromkeys(scores, 1), 'mass')
        assert sum(found.values()) == total
        steps = sorted(float(b) for row in before.values() for b in row)
        t = next(t for t in (*steps, 2.0)
                 if sum(int((row < t).sum()) for row in before.values()) >= total)
        assert {i: int((row < t).sum()) for i, row in before.items()} == found


def test_covering_is_the_shortest_prefix():
    values = spread.units(SCORES, 1)
    assert spread.covering(values, 0.7, {0: 1, 2: 1}) == {0: 2, 2: 1}
    assert spread.covering(values, 0.71, {0: 1, 2: 1}) == {0: 3, 2: 2}
    assert spread.covering(values, 1.0, {0: 1, 2: 1}) == {0: 4, 2: 4}
    assert spread.covering(values, 0.1, {0: 3, 2: 2}) == {0: 3, 2: 2}


def test_scores_below_zero_have_no_mass():
    values = spread.units({0: np.array([-1.0, 2.0])}, 1)
    assert spread.pooled(values, 1, {0: 0}, 'global') == {0: 1}
    with pytest.raises(ValueError, match='below 0'):
        spread.pooled(values, 1, {0: 0}, 'mass')


@pytest.mark.parametrize('replace', ['none', 'mean'])
@pytest.mark.parametrize(('amount', 'measure'), [
    ('parameters', count_params), ('memory', count_bytes)])
def test_a_budget_of_the_whole_model_is_used_up_and_kept(cfg, params, stats, replace, amount,
                                                         measure):
    """Checked against the model that comes out: one expert more would be too many."""
    sizes = {}
    for experts in itertools.product(range(1, 7), repeat=2):
        plan = prune.plan('frequency', stats, params, cfg, experts=list(experts), replace=replace)
        small, _ = prune.apply(params, cfg, plan)
        sizes.setdefault(sum(experts), set()).add(measure(small))
    for total in (2, 5, 8):
        allowed = max(sizes[total])
        for room in (0, 1):
            plan = prune.plan('frequency', stats, params, cfg, spread='global', replace=replace,
                              **{amount: allowed + room})
            assert measure(prune.apply(params, cfg, plan)[0]) <= allowed + room
            assert sum(layer.after for layer in plan.layers.values()) == total
    with pytest.raises(ValueError, match=f'{amount}=1 is too small.*the least is'):
        prune.plan('frequency', stats, params, cfg, **{amount: 1}, replace=replace)
    same = prune.plan('frequency', stats, params, cfg, **{amount: max(sizes[8])}, replace=replace)
    assert [layer.after for layer in same.layers.values()] == [4, 4]


def test_floors_first_layers_and_protection(cfg, params, stats, edited):
    skewed = edited(stats, 2, count_top1=np.array([1, 1, 1, 1, 1, 1]) * 1000)
    after = {}
    for name, options in {'plain': {}, 'floor': {'floor': 2}, 'keep': {'first_layer': 'keep'}
                          }.items():
        plan = prune.plan('frequency', skewed, params, cfg, experts=4, spread='global', **options)
        after[name] = [layer.after for layer in plan.layers.values()]
    assert after == {'plain': [2, 6], 'floor': [2, 6], 'keep': [6, 2]}
    elements = np.array([1.0, 1, 1, 50, 1, 1])
    first = edited(stats, 0, element_max=elements, count_top1=np.array([9, 8, 7, 0, 1, 2]))
    extreme = edited(first, 2, element_max=np.ones(6))
    plain = prune.plan('frequency', extreme, params, cfg, experts=2)
    safe = prune.plan('frequency', extreme, params, cfg, experts=2, protect='super')
    assert plain.layers[0].mix.argmax(axis=1).tolist() == [0, 1]
    assert safe.layers[0].mix.argmax(axis=1).tolist() == [0, 3]


def gates(logits, cfg, layer=None):
    """Gates by original expert [N, E] under a layer's plan (None: the original router)."""
    experts = logits.shape[1]
    if layer is None:
        found, origin = choose(logits, topk=cfg.topk, gate=cfg.gate), np.arange(experts)
    else:
        kept = layer.mix.argmax(axis=1)
        rows = layer.router.argmax(axis=1)
        alias = layer.alias
        closed = None if alias is None else tuple(alias == -1)
        found = choose(logits[:, rows], topk=cfg.topk, gate=cfg.gate, closed=closed)
        origin = rows if alias is None else np.where(alias >= 0, kept[np.minimum(
            np.maximum(alias, 0), len(kept) - 1)], -1)
    out = np.zeros(logits.shape)
    np.put_along_axis(out, origin[np.asarray(found.ids)], np.asarray(found.gates), axis=1)
    return out, np.asarray(found.probs)


@pytest.mark.parametrize('gate', ['softmax_topk', 'softmax_topk_renorm', 'topk_softmax',
                                  'sigmoid_topk', 'sigmoid_topk_renorm'])
def test_what_the_library_says_of_gates_is_so(params, stats, gate):
    """Tokens whose choices are all kept: exact gates where it says so, else times 1/(1 - q)."""
    cfg = Config(vocab=64, positions=16, width=16, heads=2, mlp_hidden=16, expert_hidden=12,
                 experts=(6, 0, 6), capacity_eval=None, topk=2, gate=gate)
    logits = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    for how in ('slice', 'preserve_mass'):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter('always')
            layer = prune.plan('frequency', stats, params, cfg, experts=4, gates=how).layers[0]
        kept = layer.mix.argmax(axis=1)
        before, probs = gates(logits, cfg)
        after, _ = gates(logits, cfg, layer)
        whole = np.isin(np.argsort(-before, axis=1)[:, :2], kept).all(axis=1)
        assert 20 < whole.sum() < 280
        grown = 1.0
        if gate == 'softmax_topk' and how == 'slice':
            grown = 1 / probs[:, kept].sum(axis=1, keepdims=True)[whole]
            assert 'grow by 1/(1 - q)' in layer.notes['gates']
            warning, = told  # once, not for every layer
            assert '2 layers in all' in str(warning.message)
        else:
            assert 'as before' in layer.notes['gates'] and not told
        np.testing.assert_allclose(after[whole], before[whole] * grown, rtol=1e-5)


def test_dropped_experts_become_their_mean_output(cfg, params, stats):
    plan = prune.plan('frequency', stats, params, cfg, experts=4, replace='mean')
    for i, layer in plan.layers.items():
        seen, lost = stats.layer(i), np.setdiff1d(np.arange(6), layer.mix.argmax(axis=1))
        for j, e in enumerate(lost):
            count = seen['moments'][0, 0, e]
            np.testing.assert_allclose(layer.constants[j], seen['output_sum'][e] / max(count, 1),
                                       rtol=1e-5)
            assert layer.alias[e] == 4 + j
    small, small_cfg = prune.apply(params, cfg, plan)
    assert small_cfg.constants == (2, 0, 2)
    shape = small['layer_0']['moe']['constants'].shape
    assert shape == (2, cfg.width) and small_cfg == small_cfg.fit(small)
    assert jax.tree.all(jax.tree.map(lambda a: bool(np.isfinite(a).all()), small))


def test_amounts_that_make_no_sense_are_refused(cfg, params, stats):
    for options, message in (
        ({}, 'exactly one of'), ({'experts': 3, 'mass': 0.5}, 'exactly one of'),
        ({'mass': 1.5}, r'in \(0, 1\]'), ({'experts': 3, 'floor': 0}, 'floor=0'),
        ({'experts': 3, 'spread': 'globl'}, "did you mean 'global'"),
        ({'experts': 3, 'gates': 'cut'}, "gates='cut'"),
        ({'memory': 2.5}, 'memory=2.5: must be an integer'),
    ):
        with pytest.raises(ValueError, match=message):
            prune.plan('frequency', stats, params, cfg, **options)
    with pytest.raises(ValueError, match='this method has none'):
        prune.plan('uncurl', stats, params, cfg, experts=3, spread='global')
    with pytest.raises(ValueError, match='for methods that drop experts'):
        prune.plan('uncurl', stats, params, cfg, experts=3, replace='mean')


def test_an_amount_pays_for_a_first_layer_that_is_kept(cfg, params, stats):
    """Of every amount the largest model that fits, counted on the model made."""
    sizes = []
    for kept in range(1, 7):
        plan = prune.plan('frequency', stats, params, cfg, experts=(6, kept))
        sizes.append(count_params(prune.apply(params, cfg, plan)[0]))
    for kept, size in enumerate(sizes, 1):
        for amount in (size, size + 1):
            plan = prune.plan('frequency', stats, params, cfg, parameters=amount,
                              first_layer='keep')
            assert [plan.layers[i].after for i in (0, 2)] == [6, kept]
    with pytest.raises(ValueError, match=f'the least is {sizes[0]:,}'):
        prune.plan('frequency', stats, params, cfg, parameters=sizes[0] - 1, first_layer='keep')
