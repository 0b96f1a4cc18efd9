"""The loss against a loop in numpy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.config.presets import PRESETS
from moe_jax.model.decoder import unembed
from train.objectives import head_loss, losses


def test_cross_entropy_equals_numpy():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2, 5, 7)).astype(np.float32)
    tokens = rng.integers(0, 7, (2, 5)).astype(np.int32)
    weights = rng.uniform(0, 2, (2, 5)).astype(np.float32)
    expected, total = 0.0, 0.0
    for b in range(2):
        for t in range(1, 5):
            z = logits[b, t - 1].astype(np.float64)
            nats = np.log(np.exp(z).sum()) - z[tokens[b, t]]
            expected += weights[b, t] * nats
            total += weights[b, t]
    got = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(tokens), jnp.asarray(weights))
    np.testing.assert_allclose(got[0], expected, rtol=1e-6)
    np.testing.assert_allclose(got[1], total, rtol=1e-6)


def test_two_classes_by_hand():
    # p(1) = 1 / (1 + e^-ln3) = 3/4 for logits (0, ln 3); predicting 1 then 0 costs ln(4/3) + ln 4.
    logits = jnp.broadcast_to(jnp.asarray([0.0, np.log(3.0)], jnp.float32), (1, 3, 2))
    total, weight = losses.cross_entropy(
        logits, jnp.asarray([[0, 1, 0]]), jnp.asarray([[9.0, 1.0, 1.0]], jnp.float32)
    )
    np.testing.assert_allclose(total, np.log(4 / 3) + np.log(4), rtol=1e-6)
    assert weight == 2.0


def test_huge_logits_stay_finite():
    logits = jnp.asarray([[[1e4, -1e4], [1e4, -1e4]]], jnp.float32)
    total, _ = losses.cross_entropy(logits, jnp.asarray([[0, 1]]), jnp.ones((1, 2), jnp.float32))
    np.testing.assert_allclose(total, 2e4, rtol=1e-6)


def test_auxiliary_is_the_sum_of_the_routers_losses():
    out = {'losses': {'balance': 0.25, 'zloss': 0.5}, 'load': 3.0}
    assert losses.auxiliary(out) == 0.75
    assert losses.auxiliary({'losses': {}}) == 0


@pytest.mark.parametrize(('tied', 'rows'), [(True, 4), (False, 4), (True, 1000)])
def test_by_blocks_it_is_the_cross_entropy_of_all_logits(tied, rows, monkeypatch):
    """Value and gradients, where the last block is not full."""
    monkeypatch.setattr(head_loss, 'BLOCK', rows * 11)
    cfg = PRESETS['tiny'](2).replace(vocab=11, width=8, tied=tied, logit_scale=0.5)
    rng = np.random.default_rng(0)
    table, x = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((11, 8), (3, 5, 8)))
    tokens = jnp.asarray(rng.integers(0, 11, (3, 5)), jnp.int32)
    weights = jnp.asarray(rng.uniform(0, 2, (3, 5)), jnp.float32)

    def params(table):
        return {'embed': {'tokens': table}} if tied else {'head': {'kernel': table}}

    def by_blocks(table, x):
        return 3.0 * head_loss.cross_entropy(cfg, params(table), x, tokens, weights)[0]

    def at_once(table, x):
        return 3.0 * losses.cross_entropy(unembed(cfg, params(table), x), tokens, weights)[0]

    found, wanted = (jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(table, x)
                     for f in (by_blocks, at_once))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, wanted)
