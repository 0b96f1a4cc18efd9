"""Masks in plans: what they leave alone, what a file holds, what is refused, and plans in a row."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moe_jax
import prune
from moe_jax.model.fingerprint import same_model, same_routers
from prune import LayerPlan, Plan
from prune.plans.masks import pack
from tests.prune.weights.weights_case import (
    BATCHES,
    CFG,
    LEAVES,
    TOKENS,
    drawn,
    kept,
    matrices,
    observed,
)

RNG = np.random.default_rng(0)
SHAPES = {'gate': (8, 12), 'up': (8, 12), 'down': (12, 8)}


def random_masks(experts=4, leaves=LEAVES, share=0.5, rng=RNG):
    return {leaf: pack(rng.random((experts, *SHAPES[leaf])) > share) for leaf in leaves}


def plan_for(layers, experts=CFG.experts, **fields):
    return Plan(method='by hand', layers=layers, experts=experts, width=CFG.width,
                expert_hidden=CFG.expert_hidden, **fields)


def masks_for(experts=(4, 4), **fields):
    sizes = (experts[0], 0, experts[1])
    return plan_for({i: LayerPlan(mix=np.eye(n), masks=random_masks(n), **fields)
                     for i, n in enumerate(sizes) if n}, sizes)


def keep_some(ids=(0, 2), before=4, **fields):
    rows = np.eye(before)[list(ids)]
    return plan_for({i: LayerPlan(mix=rows, router=rows, **fields) for i in (0, 2)},
                    tuple(before if n else 0 for n in CFG.experts))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope='module')
def params():
    return drawn()


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_zeros_where_the_mask_says_and_the_rest_bit_for_bit(dtype):
    cfg = CFG.replace(ffn_bias=True, router_bias=True)
    params = drawn(cfg, dtype=dtype)
    plan = masks_for()
    sparse, after = prune.apply(params, cfg, plan)
    assert after == cfg
    for i in cfg.moe_layers:
        old, new, masks = matrices(params, i), matrices(sparse, i), kept(plan, i)
        for leaf in LEAVES:
            assert sparse[f'layer_{i}']['moe']['experts'][leaf].dtype == dtype
            np.testing.assert_array_equal(new[leaf], np.where(masks[leaf], old[leaf], 0))
            assert not np.signbit(new[leaf][~masks[leaf]]).any()
            zeros = 1 - masks[leaf].mean()
            assert prune.sparsity(sparse)[i][leaf] == pytest.approx(zeros)
        new_moe, old_moe = (p[f'layer_{i}']['moe'] for p in (sparse, params))
        same({**new_moe, 'experts': {n: a for n, a in new_moe['experts'].items() if 'bias' in n}},
             {**old_moe, 'experts': {n: a for n, a in old_moe['experts'].items() if 'bias' in n}})
    same(sparse['layer_1'], params['layer_1'])


def test_nan_under_a_mask_does_not_survive(params):
    plan = masks_for()
    moe = params['layer_0']['moe']
    holes = jnp.where(kept(plan, 0)['up'], moe['experts']['up'], jnp.nan)
    broken = {**params, 'layer_0': {**params['layer_0'], 'moe': {
        **moe, 'experts': {**moe['experts'], 'up': holes}}}}
    same(prune.apply(broken, CFG, plan)[0], prune.apply(params, CFG, plan)[0])


def test_donating_frees_what_was_masked_and_nothing_else():
    cfg = CFG.replace(ffn_bias=True)
    params = drawn(cfg)
    plan = plan_for({i: LayerPlan(mix=np.eye(4), masks=random_masks(leaves=['up']))
                     for i in (0, 2)})
    want, _ = prune.apply(params, cfg, plan)
    experts = params['layer_0']['moe']['experts']
    got, _ = prune.apply(params, cfg, plan, donate=True)
    same(got, want)
    assert experts['up'].is_deleted() and not experts['down'].is_deleted()


def test_masks_are_of_the_experts_after_mixing(params):
    mix = np.array([[0.5, 0.5, 0, 0], [0, 0, 1, 0]], np.float32)
    masks = random_masks(2)
    layer = LayerPlan(mix=mix, router=mix, masks=masks)
    plan = plan_for({0: layer, 2: layer})
    small, cfg = prune.apply(params, CFG, plan)
    merged, _ = prune.apply(params, CFG, plan_for(
        {i: dataclasses.replace(layer, masks={}) for i in (0, 2)}))
    assert cfg.experts == (2, 0, 2)
    for leaf in LEAVES:
        np.testing.assert_array_equal(
            matrices(small, 0)[leaf], np.where(kept(plan, 0)[leaf], matrices(merged, 0)[leaf], 0))


def test_a_file_holds_the_plan_in_one_bit_a_weight(tmp_path):
    wide = CFG.replace(width=64, expert_hidden=256, experts=(8,))
    params = drawn(wide)
    plan = prune.sparsify('magnitude', None, params, wide)
    path = plan.save(tmp_path / 'plan.npz')
    weights = 8 * 3 * 64 * 256
    assert path.stat().st_size < weights / 8 + 4096
    again = Plan.load(path)
    same(prune.apply(params, wide, again)[0], prune.apply(params, wide, plan)[0])
    assert again.describe() == plan.describe() and again.options == dict(plan.options)
    assert again.layers[0].masks_only and again.layers[0].masks['up'].dtype == np.uint8


def test_a_file_of_before_masks_is_read(tmp_path, params):
    plan = keep_some()
    path = plan.save(tmp_path / 'plan.npz')
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(arrays.pop('header').tobytes())
    header['format'] = 'moe-jax plan 2'
    np.savez(path, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    same(prune.apply(params, CFG, Plan.load(path))[0], prune.apply(params, CFG, plan)[0])


EYE = np.eye(4)
GOOD = random_masks()


@pytest.mark.parametrize(('fields', 'match'), [
    ({'mix': EYE}, 'give either router'),
    ({'mix': EYE[:2], 'masks': random_masks(2)}, 'masks over unchanged experts'),
    ({'mix': EYE, 'masks': GOOD, 'perms': np.tile(np.arange(12), (4, 1))}, 'unchanged experts'),
    ({'mix': EYE, 'masks': GOOD, 'rank': 2}, 'unchanged experts'),
    ({'mix': EYE, 'masks': {'up_bias': GOOD['up']}}, "'up_bias' is no matrix"),
    ({'mix': EYE, 'masks': {'up': GOOD['up'].astype(bool)}}, 'must be uint8'),
    ({'mix': EYE, 'masks': {'up': GOOD['up'][:3]}}, 'the first G=4 experts'),
    ({'mix': EYE, 'masks': {'up': GOOD['up'][0]}}, 'must have 2 axes'),
    ({'mix': EYE, 'masks': {'up': GOOD['up']}, 'weights': {'down': np.ones((4, 12, 8))}},
     'values and no mask'),
    ({'mix': EYE, 'masks': GOOD, 'weights': {'up': np.full((4, 8, 12), np.nan)}}, 'not finite'),
])
def test_a_layer_plan_that_makes_no_sense_is_refused(fields, match):
    with pytest.raises(ValueError, match=match):
        LayerPlan(**fields)


def test_masks_of_another_size_are_refused():
    for masks, weights, match in (
            ({'up': GOOD['up'][:, :-1]}, {}, 'mask of up has 11 bytes'),
            (GOOD, {'up': np.ones((4, 12, 8))}, 'weights of up have shape')):
        layer = LayerPlan(mix=EYE, masks=masks, weights=weights)
        with pytest.raises(ValueError, match=f'plan layer 0: {match}'):
            plan_for({0: layer, 2: layer})
    odd = LayerPlan(mix=EYE, masks={'up': np.full((4, 2), 255, np.uint8)})
    with pytest.raises(ValueError, match='bits behind its last weight'):
        Plan(method='', layers={0: odd}, experts=(4,), width=3, expert_hidden=3)
    plain = CFG.replace(ffn='gelu')
    with pytest.raises(ValueError, match=r"masks \['gate'\]"):
        prune.apply(drawn(plain), plain, masks_for())


def test_experts_and_then_masks(params):
    first, second = keep_some(), masks_for((2, 2))
    small, cfg = prune.apply(params, CFG, first)
    want, want_cfg = prune.apply(small, cfg, second)
    both = first.then(second)
    got, got_cfg = prune.apply(params, CFG, both)
    same(got, want)
    assert got_cfg == want_cfg and both.method == 'by hand+by hand'
    assert '4 -> 2 experts' in both.describe() and 'zero weights gate' in both.describe()


def test_stun_and_then_wanda(params, tmp_path):
    """The whole way, and to a file and back."""
    first = prune.plan('stun', None, params, CFG, experts=2, average_below=0)
    small, cfg = prune.apply(params, CFG, first)
    second = prune.sparsify('wanda', observed(cfg, small), small, cfg)
    both = Plan.load(first.then(second).save(tmp_path / 'plan.npz'))
    assert both.options['wanda.sparsity'] == 0.5 and both.options['lambda1'] == 1.0
    same(prune.apply(params, CFG, both)[0], prune.apply(small, cfg, second)[0])


@pytest.mark.parametrize('valued', [False, True])
@pytest.mark.parametrize('permuted', [False, True])
def test_masks_and_then_dropping(params, valued, permuted):
    values = {leaf: RNG.normal(size=(4, *shape)) for leaf, shape in SHAPES.items()}
    first = masks_for(weights=values if valued else {})
    perms = np.stack([RNG.permutation(12) for _ in range(4)]) if permuted else None
    second = keep_some((1, 3), perms=perms)
    sparse, _ = prune.apply(params, CFG, first)
    want, cfg = prune.apply(sparse, CFG, second)
    got, got_cfg = prune.apply(params, CFG, first.then(second))
    same(got, want)
    assert got_cfg == cfg


def test_masks_and_then_masks(params):
    values = {'up': RNG.normal(size=(4, 8, 12))}
    for a, b in ((masks_for(), masks_for()), (masks_for(weights=values), masks_for()),
                 (masks_for(), masks_for(weights=values))):
        sparse, _ = prune.apply(params, CFG, a)
        same(prune.apply(params, CFG, a.then(b))[0], prune.apply(sparse, CFG, b)[0])


def test_experts_with_masks_and_then_masks_and_the_other_way(params):
    mixed = plan_for({i: dataclasses.replace(keep_some().layers[i], masks=random_masks(2))
                      for i in (0, 2)})
    for a, b in (mixed, masks_for((2, 2))), (masks_for(), mixed):
        sparse, cfg = prune.apply(params, CFG, a)
        same(prune.apply(params, CFG, a.then(b))[0], prune.apply(sparse, cfg, b)[0])


def test_what_cannot_follow_is_refused():
    merge = np.array([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]], np.float32)
    merging = plan_for({i: LayerPlan(mix=merge, router=merge) for i in (0, 2)})
    with pytest.raises(ValueError, match='merge first, then sparsify'):
        masks_for().then(merging)
    with pytest.raises(ValueError, match='both plans change experts'):
        keep_some().then(keep_some((0,), before=2))
    with pytest.raises(ValueError, match=r'leaves \[2, 2\] experts.*is for \[4, 4\]'):
        keep_some().then(masks_for())
    named = [dataclasses.replace(masks_for(), model=f'model:{n}') for n in 'ab']
    with pytest.raises(ValueError, match='different models'):
        named[0].then(named[1])


def test_the_share_of_zeros_of_a_model(params):
    assert prune.sparsity(params) == {0: dict.fromkeys(LEAVES, 0.0), 2: dict.fromkeys(LEAVES, 0.0)}
    plan = prune.sparsify('magnitude', None, params, CFG, leaves=['down'], sparsity=0.25)
    found = prune.sparsity(prune.apply(params, CFG, plan)[0])
    assert found[0] == {'gate': 0.0, 'up': 0.0, 'down': 0.25}
    assert 'layer 0: 4 experts, zero weights down 25.00%, without' in plan.describe()


def test_a_foreign_model_takes_masks():
    params = {f'block_{i}': {'router': {'kernel': RNG.normal(size=(8, 4)).astype(np.float32)},
                             'w_up': RNG.normal(size=(8, 12, 4)).astype(np.float32),
                             'w_down': RNG.normal(size=(12, 8, 4)).astype(np.float32)}
              for i in range(2)}
    moe = prune.Foreign(layers=['block_0', 'block_1'], topk=2, gate='softmax_topk_renorm',
                        ffn='gelu', router=prune.Leaf('router/kernel', axis=1),
                        experts={'up': prune.Leaf('w_up', axis=2),
                                 'down': prune.Leaf('w_down', axis=2)})
    cfg, view = moe.view(params)
    plan = prune.sparsify('magnitude', None, view, cfg, scope='output')
    sparse = moe.apply(params, plan)
    for i in range(2):
        block, old = sparse[f'block_{i}'], params[f'block_{i}']
        assert ((block['w_up'] == 0).sum(axis=0) == 4).all()
        np.testing.assert_array_equal(block['w_down'][block['w_down'] != 0],
                                      old['w_down'][block['w_down'] != 0])


def test_the_model_runs_and_is_the_model_with_zeros(params):
    plan = prune.sparsify('wanda', observed(CFG, params), params, CFG)
    sparse, cfg = prune.apply(params, CFG, plan)
    logits = moe_jax.apply(cfg, sparse, TOKENS)
    assert np.isfinite(logits).all()
    assert np.abs(logits - moe_jax.apply(CFG, params, TOKENS)).max() > 1e-3
    found = moe_jax.observe(cfg, sparse, BATCHES).fingerprint
    assert same_routers(found, plan.model) and not same_model(found, plan.model)
