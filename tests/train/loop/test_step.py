"""Laws of one step: accumulation, freezing, sharing of compilations, and refusing NaN."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.base.tree import leaves_with_paths
from moe_jax.model import decoder
from tests.train.train_tiny import CFG, DROPLESS, OPTIONS, batch, equal, params
from train import init_state, make_step
from train.loop.step import train_step
from train.objectives import losses


def stacked(*batches):
    return jax.tree.map(lambda *rows: np.stack(rows), *batches)


def run(cfg, options, *batches, start=None):
    state = init_state(params(cfg) if start is None else start, options)
    return make_step(cfg, options)(state, stacked(*batches))


def test_metrics_equal_a_forward_pass():
    rows, key = batch(0), jax.random.fold_in(jax.random.key(OPTIONS.seed), 0)
    _, metrics = run(CFG, OPTIONS, rows)
    forward = jax.jit(functools.partial(decoder.forward, CFG, train=True))
    logits, out = forward(params(), rows['tokens'], rows['segments'], key=key)
    total, weight = losses.cross_entropy(logits, rows['tokens'], rows['weights'])
    np.testing.assert_allclose(metrics['ce'], total / weight, rtol=1e-5)
    np.testing.assert_allclose(metrics['tokens'], weight, rtol=1e-6)
    np.testing.assert_allclose(
        metrics['loss'], total / weight + out['balance'] + out['zloss'], rtol=1e-5
    )
    np.testing.assert_allclose(metrics['load_max'], out['load'].max(), rtol=1e-6)
    np.testing.assert_allclose(metrics['dropped'], out['dropped'].mean(), rtol=1e-6)


def test_four_micro_batches_equal_one_big_batch():
    parts = [batch(i) for i in range(4)]
    big = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    # Few weights in one part: a mean of means would differ visibly.
    parts[1]['weights'][1:] = 0
    big['weights'][5:8] = 0
    one, one_metrics = run(DROPLESS, OPTIONS, big)
    four, four_metrics = run(DROPLESS, OPTIONS, *parts)
    np.testing.assert_allclose(four_metrics['loss'], one_metrics['loss'], rtol=1e-6)
    np.testing.assert_allclose(four_metrics['grad_norm'], one_metrics['grad_norm'], rtol=1e-5)
    moments = zip(jax.tree.leaves(four.opt_state), jax.tree.leaves(one.opt_state), strict=True)
    for ours, expected in moments:
        np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_frozen_leaves_are_untouched_and_have_no_optimizer_state():
    start = params()
    options = dataclasses.replace(OPTIONS, trainable=r'moe/router')
    state, _ = run(CFG, options, batch(0), start=start)
    for (path, old), (_, new) in zip(leaves_with_paths(start), leaves_with_paths(state.params),
                                     strict=True):
        assert equal(old, new) == ('moe/router' not in path), path
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(state.opt_state))
    assert shapes == [(), (4, 16), (4, 16)]


def test_the_starting_weights_survive_donation():
    start = params()
    before = jax.tree.map(np.array, start)
    run(CFG, OPTIONS, batch(0), start=start)
    assert equal(before, start)


def test_bfloat16_weights_train_in_float32():
    start = jax.tree.map(lambda leaf: leaf.astype('bfloat16'), params())
    state = init_state(start, dataclasses.replace(OPTIONS, trainable=r'moe/'))
    assert state.params['layer_0']['moe']['experts']['up'].dtype == np.float32
    assert state.params['layer_0']['attn']['q'].dtype == 'bfloat16'


def test_runs_that_differ_in_numbers_share_one_compilation():
    run(CFG, OPTIONS, batch(0))
    compiled = train_step._cache_size()
    for change in ({'steps': 900, 'warmup': 30}, {'peak_lr': 1e-5}, {'weight_decay': 0.001},
                   {'clip': None}, {'seed': 5}, {'log_every': 1, 'checkpoint_every': 0}):
        run(CFG, dataclasses.replace(OPTIONS, **change), batch(1))
    host = jax.tree.map(np.array, params())
    run(CFG, OPTIONS, batch(2), start=host)
    state = init_state(params(), OPTIONS)
    for index in range(3):
        state, _ = make_step(CFG, OPTIONS)(state, stacked(batch(index)))
    assert train_step._cache_size() == compiled


def test_jitter_follows_seed_and_step():
    seeds = [dataclasses.replace(OPTIONS, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (float(run(CFG, o, batch(0))[1]['loss']) for o in seeds)
    assert first == again != other
    late = init_state(params(), OPTIONS)._replace(step=jnp.asarray(1, jnp.int32))
    assert float(make_step(CFG, OPTIONS)(late, stacked(batch(0)))[1]['loss']) != first


def test_a_step_that_is_not_finite_changes_nothing():
    start = params()
    start['layer_1']['mlp']['up'] = start['layer_1']['mlp']['up'].at[0, 0].set(np.inf)
    state, metrics = run(CFG, OPTIONS, batch(0), start=start)
    assert not metrics['finite']
    assert equal(state.params, start)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))


def test_a_batch_without_weights_only_balances():
    rows = batch(0)
    rows['weights'][:] = 0
    _, metrics = run(CFG, OPTIONS, rows)
    assert metrics['ce'] == 0 and metrics['tokens'] == 0 and metrics['finite']


def test_dense_models_train():
    cfg = CFG.replace(experts=(0, 0))
    _, metrics = run(cfg, OPTIONS, batch(0))
    assert metrics['load_max'] == metrics['dropped'] == 0
    assert metrics['finite']


def test_training_lowers_the_loss():
    options = dataclasses.replace(OPTIONS, steps=30, warmup=3, peak_lr=1e-2)
    state, step, seen = init_state(params(), options), make_step(CFG, options), []
    for _ in range(30):
        state, metrics = step(state, stacked(batch(0)))
        seen.append(float(metrics['ce']))
    assert seen[-1] < seen[0] - 0.5
