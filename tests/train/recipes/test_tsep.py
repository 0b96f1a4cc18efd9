"""TSEP: its rule by hand, its mask against its cut, and runs that stop and go on."""

import dataclasses
import itertools
import json
import math
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moe_jax.storage.native
from moe_jax.model import decoder
from moe_jax.routing.close import SHUT
from moe_jax.routing.designs.top_k import route
from moe_jax.routing.gates import GATE
from moe_jax.routing.losses import balance_loss, z_loss
from tests.matrix import rows as rows_of
from tests.train.train_tiny import CFG, OPTIONS, batch, equal, stream
from train import Callback, Interrupted, Tsep, finetune, fit, tsep
from train.loop.step import train_step
from train.objectives import losses
from train.recipes.tsep import _without_mask, drop, finish, mask, survivors
from train.trainable.resolved import resolve

PACKED = jax.tree.map(lambda *rows: np.concatenate(rows), *(batch(i) for i in range(5)))
RUN = CFG.replace(experts=(6, 4), topk=2, jitter=0.0)
RULE = Tsep(window=2, least=3, beta=0.9, until=5, final=2)
ONES = np.ones(4, bool)
forward = jax.jit(decoder.forward, static_argnums=0, static_argnames=('train', 'watch'))


def drawn(cfg, seed=0):
    """Random leaves, biases and corrections too."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype),
        decoder.shapes(cfg))


def stop_at(step):
    """A progress callback that is interrupted when `step` is done."""
    return lambda now, *_: signal.raise_signal(signal.SIGTERM) if now == step else None


@pytest.mark.parametrize(('use', 'alive', 'beta', 'least', 'groups', 'stay'), [
    # shares 4/6, 1/6, 1/6, 0; beta / alive = 0.2: three are weak, the dead expert's 9 is not seen
    ([4, 1, 1, 0, 9], [1, 1, 1, 1, 0], 0.8, 1, 1, [1, 0, 0, 0, 0]),
    ([4, 1, 1, 0, 9], [1, 1, 1, 1, 0], 0.8, 2, 1, [1, 1, 0, 0, 0]),  # of equals the higher goes
    ([4, 1, 1, 0, 9], [1, 1, 1, 1, 0], 0.8, 3, 1, [1, 1, 1, 0, 0]),
    ([4, 1, 1, 0, 9], [1, 1, 1, 1, 0], 0.1, 1, 1, [1, 1, 1, 0, 0]),
    ([4, 1, 1, 0, 9], [1, 1, 1, 1, 0], math.inf, 2, 1, [1, 1, 0, 0, 0]),
    ([1, 1, 1, 1], ONES, 1.0, 1, 1, ONES),  # below its share, not at it
    ([0, 0, 0, 0], ONES, 1.0, 1, 1, ONES),  # without tokens nothing is known
    ([np.nan, 1, 0, 0], ONES, 1.0, 1, 1, ONES),  # a step that diverged, about to be refused
    # beta / alive of the sum is 14 / 16: 1 and 2 are weak in one group, 7 in the other: one each
    ([3, 0, 0, 5, 2, 2, 2, 0], np.ones(8), 0.5, 2, 2, [1, 1, 0, 1, 1, 1, 1, 0]),
    ([3, 0, 1, 5, 2, 2, 2, 2], np.ones(8), 0.5, 2, 2, np.ones(8)),
    ([3, 0, 1, 5, 4, 3, 2, 1], np.ones(8), math.inf, 4, 2, [1, 0, 0, 1, 1, 1, 0, 0]),
])
def test_the_rule_by_hand(use, alive, beta, least, groups, stay):
    found = survivors(np.array(use, float), np.array(alive, bool), beta, least, groups)
    np.testing.assert_array_equal(found, np.array(stay, bool))


@pytest.fixture(scope='module')
def routed():
    """What a dropless forward pass of `drawn(RUN)` says, and its choices ids, gates by layer."""
    rows = batch(0)
    _, out = forward(RUN.replace(capacity_train=None, capacity_eval=None), drawn(RUN),
                     rows['tokens'], rows['segments'], watch=('routing',))
    valid = rows['segments'].ravel() > 0
    return out, [(np.asarray(out['routing'][i].ids)[valid],
                  np.asarray(out['routing'][i].gates)[valid]) for i in RUN.moe_layers]


def test_hits_and_mass_are_counted_per_expert(routed):
    out, choices = routed
    for i, (ids, gates) in enumerate(choices):
        own = [ids == e for e in range(RUN.experts[i])]
        np.testing.assert_array_equal(out['hits'][i], [mine.sum() for mine in own])
        np.testing.assert_allclose(out['mass'][i], [gates[mine].sum() for mine in own], rtol=1e-5)


BASE = CFG.replace(experts=(8,), topk=2, capacity_train=None, capacity_eval=None, jitter=0.0)
GATES = {
    'raw': BASE,
    'renorm': BASE.replace(gate='softmax_topk_renorm'),
    'topk_softmax': BASE.replace(gate='topk_softmax', router_bias=True),
    'sigmoid': BASE.replace(gate='sigmoid_topk_renorm', correction=True),
    'grouped': BASE.replace(gate='sigmoid_topk_renorm', correction=True, groups=2, groups_used=1,
                            gate_scale=2.5),
}
STAY = np.array([0, 1, 0, 1, 1, 0, 0, 1], bool)


def masked(cfg):
    """A model of which half is masked."""
    wide, tree = mask(cfg, drawn(cfg))
    return wide, drop(tree, 0, STAY)


@pytest.mark.parametrize('name', rows_of(GATES, quick=['grouped']))
def test_the_small_model_computes_what_the_masked_one_does(name):
    cfg, rows = GATES[name], batch(1)
    wide, tree = masked(cfg)
    small, small_cfg = finish(cfg, tree)
    logits, out = forward(wide, tree, rows['tokens'], rows['segments'], watch=('routing',))
    assert small_cfg == cfg.replace(experts=(4,))
    np.testing.assert_allclose(forward(small_cfg, small, rows['tokens'], rows['segments'])[0],
                               logits, atol=1e-5)
    assert STAY[np.asarray(out['routing'][0].ids)].all() and np.isfinite(float(out['zloss']))
    moe, before = small['layer_0']['moe'], drawn(cfg)['layer_0']['moe']
    for part in ('router', 'experts'):
        assert equal(moe[part], {k: np.asarray(v)[STAY] for k, v in before[part].items()})


def test_layers_may_keep_different_numbers_and_need_a_mask():
    with pytest.raises(ValueError, match=r'layer_0/moe/router has no bias'):
        finish(RUN, drawn(RUN))
    tree = drop(mask(RUN, drawn(RUN))[1], 0, np.array([1, 0, 1, 1, 0, 1], bool))
    small, small_cfg = finish(RUN, drop(tree, 1, np.array([0, 1, 1, 0], bool)))
    assert small_cfg == RUN.replace(experts=(4, 2))
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, decoder.shapes(small_cfg))


def test_the_dropped_have_no_gradient_and_the_others_do():
    wide, tree = masked(GATES['grouped'].replace(balance=0.1, zloss=0.1))
    rows = batch(1)

    def loss(tree):
        logits, out = decoder.forward(wide, tree, rows['tokens'], rows['segments'], train=True)
        nats = losses.cross_entropy(logits, rows['tokens'], rows['weights'])[0]
        return nats + losses.auxiliary(out)
    grads = jax.jit(jax.grad(loss))(tree)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    moe = grads['layer_0']['moe']
    for leaf in [*moe['experts'].values(), moe['router']['kernel'], moe['router']['bias']]:
        assert not np.asarray(leaf)[~STAY].any()
    assert np.asarray(moe['experts']['up'])[STAY].any(axis=(1, 2)).sum() > 1
    assert not np.asarray(moe['router']['correction']).any()


@pytest.mark.parametrize('gate', rows_of(GATE, quick=['softmax_topk']))
def test_no_gate_has_a_gradient_of_the_dropped(gate):
    _, tree = masked(BASE.replace(gate=gate))

    def loss(router):
        found = route(x, router, topk=2, gate=gate)
        worth = (found.gates * jnp.arange(1.0, 3.0)[None]).sum()
        return worth + balance_loss(found, valid) + z_loss(found, valid)
    x, valid = jnp.asarray(np.random.default_rng(2).normal(size=(5, 16)), jnp.float32), np.ones(5)
    for leaf in jax.grad(loss)(tree['layer_0']['moe']['router']).values():
        assert np.isfinite(leaf).all() and not np.asarray(leaf)[~STAY].any()


@pytest.mark.parametrize('gate', GATE)
@pytest.mark.parametrize('correction', [0.0, 50.0])
def test_not_even_a_gate_that_vanished_loses_to_a_dropped_expert(gate, correction):
    router = {'kernel': jnp.zeros((4, 2)), 'bias': jnp.array([9.0, 9.0, -200.0, 0.0]),
              'correction': jnp.array([correction, correction, 0.0, 0.0])}
    closed = drop({'layer_0': {'moe': {'router': router}}}, 0, np.array([0, 0, 1, 1], bool))
    found = route(jnp.ones((1, 2)), closed['layer_0']['moe']['router'], topk=2, gate=gate)
    assert sorted(found.ids[0].tolist()) == [2, 3]
    assert np.isfinite(found.gates).all()


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp('tsep') / 'run'
    start = drawn(RUN)
    compiled, options = train_step._cache_size(), dataclasses.replace(OPTIONS, log_every=1)
    result = tsep(RUN, start, PACKED, options, RULE, out=out)
    assert equal(start, drawn(RUN)) and train_step._cache_size() == compiled + 1
    return out, options, *result


def test_a_run_drops_at_its_windows_and_is_forced_down(unbroken):
    _, _, small, small_cfg, history = unbroken
    alive = np.array([line['alive'] for line in history])
    assert alive.shape == (7, 2) and (np.diff(alive, axis=0) <= 0).all()
    assert alive[0].tolist() == [6, 4]
    assert equal(alive[1], alive[2]) and (alive[1] < alive[0]).all()  # beta 0.9 of random routers
    assert (alive[:4] >= 3).all() and (alive[4:] == 2).all()
    assert small_cfg == RUN.replace(experts=(2, 2))
    assert small_cfg == small_cfg.fit(small)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, decoder.shapes(small_cfg))


def test_the_folder_keeps_the_masked_model_and_its_living_are_not_biased(unbroken):
    out, _, small, small_cfg, history = unbroken
    wide, tree = moe_jax.storage.native.load(out / 'model')
    again, again_cfg = finish(RUN, tree)
    assert again_cfg == small_cfg and equal(again, small)
    for i, name in itertools.product(RUN.moe_layers, ('bias', 'correction')):
        values = sorted(tree[f'layer_{i}']['moe']['router'][name].tolist())
        assert values == [SHUT] * (RUN.experts[i] - 2) + [0.0, 0.0]
    assert wide.capacity_train is None and wide.router_bias
    lines = (out / 'metrics.jsonl').read_text().splitlines()
    assert [json.loads(line) for line in lines] == history


@pytest.mark.parametrize('step', [1, 2, 5])
def test_interrupted_and_resumed_equals_unbroken(unbroken, tmp_path, step):
    reference, options, small, _, history = unbroken
    with pytest.raises(Interrupted):
        tsep(RUN, drawn(RUN), PACKED, options, RULE, out=tmp_path / 'run', progress=stop_at(step))
    resumed, _, lines = tsep(RUN, drawn(RUN), PACKED, options, RULE, out=tmp_path / 'run')
    assert equal(resumed, small) and lines == history
    written = (tmp_path / 'run/metrics.jsonl').read_bytes()
    assert written == (reference / 'metrics.jsonl').read_bytes()


def test_a_folder_is_of_one_rule(unbroken):
    out, options, *_ = unbroken
    with pytest.raises(ValueError, match=r'callback was Tsep.*beta=0\.9.*is now Tsep.*beta=0\.5'):
        tsep(RUN, drawn(RUN), PACKED, options, dataclasses.replace(RULE, beta=0.5), out=out)
    wide, tree = mask(RUN, drawn(RUN))
    with pytest.raises(ValueError, match=r'callback was Tsep.*is now None'):
        finetune(wide, tree, PACKED, _without_mask(RUN, options), out=out)


@pytest.mark.parametrize('name', ['gate', 'hits'])
def test_the_best_of_the_first_step_stay(routed, name):
    start = drawn(RUN)
    options = dataclasses.replace(OPTIONS, steps=1, warmup=0, peak_lr=0.0)
    rule = Tsep(window=1, least=2, until=1, signal=name)
    small, small_cfg, history = tsep(RUN, start, batch(0), options, rule)
    assert history[-1]['alive'] == [2, 2] and small_cfg.experts == (2, 2)
    # One batch of four rows, in whatever order; at rate 0 the weights stay.
    for i, (ids, gates) in enumerate(routed[1]):
        weight = gates if name == 'gate' else np.ones_like(gates)
        use = [-weight[ids == e].sum() for e in range(RUN.experts[i])]
        best = sorted(np.argsort(use, kind='stable')[:2])
        up = np.asarray(start[f'layer_{i}']['moe']['experts']['up'])
        assert equal(small[f'layer_{i}']['moe']['experts']['up'], up[best])


def test_evaluation_sees_the_small_model():
    seen = []

    def evaluate(cfg, tree):
        seen.append(cfg.experts)
        return {'experts': tree['layer_0']['moe']['router']['kernel'].shape[0]}
    options = dataclasses.replace(OPTIONS, evaluate_every=5)
    _, small_cfg, history = tsep(RUN, drawn(RUN), PACKED, options, RULE, evaluate=evaluate)
    assert seen == [(2, 2), (2, 2)] and small_cfg.capacity_train == RUN.capacity_train
    assert [line.get('eval_experts') for line in history] == [None, None, 2.0, None, 2.0]


@pytest.mark.parametrize('trainable', [
    None, 'moe/', '^layer_0', 'moe/router|embed', 'kernel$', '(?i)MOE/'])
@pytest.mark.parametrize('cfg', [RUN, RUN.replace(router_bias=True), RUN.replace(correction=True)])
def test_what_the_mask_adds_does_not_train_and_the_rest_as_told(cfg, trainable):
    start = drawn(cfg)
    options = dataclasses.replace(OPTIONS, trainable=trainable)
    chosen = resolve(mask(cfg, start)[1], _without_mask(cfg, options).trainable)
    assert set(chosen.by_path) == set(resolve(start, trainable).by_path)


@pytest.mark.parametrize(('fields', 'message'), [
    ({'window': 0}, r'Tsep\.window=0: must be an integer, at least 1'),
    ({'least': None}, r'Tsep\.least=None'),
    ({'beta': 1.5}, r'Tsep\.beta=1\.5: must be a finite number in \[0, 1\]'),
    ({'beta': math.nan}, r'Tsep\.beta=nan'),
    ({'final': 4}, r'Tsep\.final=4 exceeds least=3'),
    ({'signal': 'loss'}, "Tsep.signal='loss'; valid: gate, hits"),
])
def test_a_rule_that_is_none_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RULE, **fields)


@pytest.mark.parametrize(('cfg', 'fields', 'message'), [
    (RUN, {'until': 8}, r'Tsep\.until=8: the run has 7 steps'),
    (RUN, {'window': 6}, r'Tsep\.window=6: no window ends by step 5'),
    (RUN, {'least': 6, 'final': None}, r'Tsep\.final=6: the largest layer has 6 experts'),
    (RUN.replace(experts=(0, 0)), {}, 'the largest layer has 0 experts'),
    (RUN.replace(topk=3), {}, r'Tsep\.final=2: a token chooses topk=3 experts'),
    (RUN.replace(groups=2, experts=(6, 6)), {}, r'Tsep\.least=3: makes no model: .*2 groups need'),
    (RUN.replace(aliases=((0, 1, 2, 3, 4, 5, 0), None)), {}, 'model without merged experts'),
])
def test_a_rule_that_does_not_suit_is_refused_before_anything(cfg, fields, message, tmp_path):
    rule = dataclasses.replace(RULE, **fields)
    with pytest.raises(ValueError, match=message):
        tsep(cfg, None, PACKED, OPTIONS, rule, out=tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('kept', [0, 1])
def test_a_callback_keeps_and_logs_what_it_likes(tmp_path, kept):
    cfg, start = mask(RUN, drawn(RUN))
    options = _without_mask(RUN, OPTIONS)

    def after(step, state, metrics, carry):
        carry = tuple(total + metrics['experts']['hits'][0] for total in carry)
        return state, metrics | {'twice': 2 * step, **dict(zip('h', carry, strict=False))}, carry
    callback = Callback('sums', lambda cfg, params: (jnp.zeros(6),) * kept, after)
    with pytest.raises(Interrupted):
        fit(cfg, start, stream, options, out=tmp_path, progress=stop_at(3), callback=callback)
    trained, history = fit(cfg, start, stream, options, out=tmp_path, callback=callback)
    whole, lines = fit(cfg, start, stream, options, callback=callback)
    assert equal(trained, whole) and history == lines
    assert [line['twice'] for line in history] == [4, 8, 12, 14]
    if kept:  # 80 choices a step: 4 rows of 10 tokens, topk 2
        assert [sum(line['h']) for line in history] == [160.0, 320.0, 480.0, 560.0]
