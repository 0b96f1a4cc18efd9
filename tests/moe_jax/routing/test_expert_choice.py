"""Expert choice against a loop: equal loads, best tokens, ties to the earlier one."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moe_jax
from moe_jax.calibration.expert_sums import ExpertSums
from moe_jax.config import Skip
from moe_jax.layers import ffn
from moe_jax.model.moe import SparseMoe
from moe_jax.model.network import rows_in
from moe_jax.routing.designs.expert_choice import ExpertChoice
from moe_jax.routing.routing import LayerRows, RouterInput
from tests.moe_jax.routing.cases import config, rows

WIDTH, ROWS = 6, 4
run = jax.jit(moe_jax.forward, static_argnums=0, static_argnames=('watch', 'observer'))


def loop(probs: np.ndarray, segments: np.ndarray, parts: int, capacity: float) -> np.ndarray:
    """Gates [N, R], 0 where a row did not take the token."""
    gates = np.zeros_like(probs)
    for part in np.split(np.arange(len(probs)), parts):
        valid = [n for n in part if segments[n] > 0]
        places = math.ceil(capacity * len(valid) / probs.shape[1])
        for r in range(probs.shape[1]):
            best = sorted(valid, key=lambda n: -probs[n, r])[:places]
            gates[best, r] = probs[best, r]
    return gates


@pytest.mark.parametrize('over', ['row', 'batch'])
@pytest.mark.parametrize('capacity', [0.5, 1.0, 2.5, 9.0])
def test_each_row_takes_its_best_tokens(over, capacity):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(24, WIDTH)).astype(np.float32)
    kernel = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    segments = np.where(np.arange(24) % 8 < 6, 1, 0)
    router = ExpertChoice(capacity=capacity, over=over)
    given = RouterInput(x, segments, rows=3)
    found = router.route({'kernel': kernel}, given, LayerRows(ROWS, ROWS))
    logits = x.astype(np.float64) @ kernel.T
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = loop(probs, segments, 3 if over == 'row' else 1, capacity)
    gates = np.zeros((24, ROWS))
    np.put_along_axis(gates, np.asarray(found.ids), np.where(found.used, found.gates, 0), axis=1)
    np.testing.assert_allclose(gates, wanted, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(found.used).sum(axis=1), (wanted > 0).sum(axis=1))


def test_loads_are_equal_and_the_best_place_comes_first():
    cfg = config(ExpertChoice(capacity=2.0))
    tokens, _ = rows()
    _, out = run(cfg, moe_jax.init(cfg, jax.random.key(1)), tokens, watch=('routing',))
    for i in cfg.moe_layers:
        assert set(np.asarray(out['hits'][i])) == {3 * math.ceil(2.0 * 12 / 5)}
        record = out['routing'][i]
        assert (np.diff(np.where(record.kept, record.gates, -1), axis=1) <= 0).all()
    assert not out['losses'] and float(out['dropped'].max()) == 0


def test_equal_tokens_are_taken_from_the_front():
    x = np.ones((6, WIDTH), np.float32)
    found = ExpertChoice(capacity=1.0).route(
        {'kernel': np.ones((2, WIDTH), np.float32)},
        RouterInput(x, np.ones(6, np.int32)), LayerRows(2, 2))
    np.testing.assert_array_equal(np.asarray(found.slots.tokens), [[0, 1, 2], [0, 1, 2]])


def test_one_expert_that_takes_all_is_a_dense_layer():
    cfg = config(ExpertChoice(capacity=1.0), experts=(1, 0, 1))
    tokens, segments = rows()
    moe = moe_jax.init(cfg, jax.random.key(2))['layer_0']['moe']
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(*tokens.shape, cfg.width)), jnp.float32)
    y = jax.jit(lambda x: SparseMoe(cfg, 0, False).apply(
        {'params': moe}, x, rows_in(cfg, jnp.asarray(segments))[0]))(x)
    one = {name: leaf[0] for name, leaf in moe['experts'].items()}
    wanted, valid = ffn.of(cfg)(one, x), segments > 0
    np.testing.assert_allclose(np.asarray(y)[valid], np.asarray(wanted)[valid], rtol=1e-5,
                               atol=1e-6)


def test_slots_and_choices_give_the_same_output():
    """By slots on one device, by choices where an observer or a mesh asks."""
    cfg = config(ExpertChoice(capacity=1.3))
    tokens, segments = rows()
    params = moe_jax.init(cfg, jax.random.key(3))
    by_slots, _ = run(cfg, params, tokens, segments)
    by_choice, _ = run(cfg, params, tokens, segments, watch=('routing',),
                                   observer=ExpertSums())
    np.testing.assert_allclose(by_slots, by_choice, rtol=1e-5, atol=1e-5)


def test_skipping_is_refused_for_experts_that_choose():
    with pytest.raises(ValueError, match=r'Config\.skip: .*lower its capacity'):
        config(ExpertChoice(), skip=Skip(kind='top_p', thresholds=((0.5,), (), (0.5,))))


def test_noise_is_for_training_alone():
    router = ExpertChoice(capacity=1.0, noise=5.0)
    x = np.random.default_rng(0).normal(size=(8, WIDTH)).astype(np.float32)
    leaves = {'kernel': np.ones((ROWS, WIDTH), np.float32)}
    plain, quiet, noisy = (router.route(leaves, RouterInput(
        x, np.ones(8, np.int32), key=key, train=train), LayerRows(ROWS, ROWS)).logits
        for key, train in ((None, True), (jax.random.key(0), False), (jax.random.key(0), True)))
    np.testing.assert_array_equal(plain, quiet)
    assert np.abs(np.asarray(noisy - plain)).max() > 0.1
