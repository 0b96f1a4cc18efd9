"""The loss against a loop in numpy."""

import jax.numpy as jnp
import numpy as np

from train import losses


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


def test_auxiliary_is_balance_plus_z():
    assert losses.auxiliary({'balance': 0.25, 'zloss': 0.5, 'load': 3.0}) == 0.75
