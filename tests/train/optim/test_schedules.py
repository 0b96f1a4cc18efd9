"""Schedules by hand and against optax's own, whose lengths are not traced."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.optim.schedules import SCHEDULES, learning_rate

FORMULAS = {
    'linear': lambda progress: 1.0 - progress,
    'cosine': lambda progress: 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
    'constant': jnp.ones_like,
}


def rates(schedule, steps, warmup, peak=1.0):
    run = jax.jit(learning_rate, static_argnums=0)
    peak, warm, last = jnp.float32(peak), jnp.int32(warmup), jnp.int32(steps)
    return [float(run(schedule, jnp.int32(step), peak, warm, last)) for step in range(steps)]


def test_linear_schedule_by_hand():
    expected = [1 / 3, 2 / 3, 1, 4 / 5, 3 / 5, 2 / 5, 1 / 5]
    np.testing.assert_allclose(rates('linear', 7, 3), expected, rtol=1e-6)


def test_no_warmup_starts_at_the_peak():
    np.testing.assert_allclose(rates('linear', 4, 0, peak=2.0), [2.0, 1.5, 1.0, 0.5], rtol=1e-6)


@pytest.mark.parametrize('schedule', sorted(SCHEDULES))
def test_schedules_reach_the_peak_once_warm_and_never_exceed_it(schedule):
    values = rates(schedule, 9, 4)
    assert values[3] == max(values) == 1.0
    assert all(value > 0 for value in values)
    assert values[4:] == sorted(values[4:], reverse=True)


@pytest.mark.parametrize('schedule', sorted(SCHEDULES))
def test_decays_are_their_formulas_to_the_last_bit(schedule):
    """Runs that were saved go on with the very rates they began with."""
    progress = jnp.asarray(np.random.default_rng(0).uniform(size=10_000), jnp.float32)

    def ours(progress):
        return jnp.broadcast_to(SCHEDULES[schedule](progress), progress.shape)
    np.testing.assert_array_equal(jax.jit(ours)(progress), jax.jit(FORMULAS[schedule])(progress))


@pytest.mark.parametrize(('schedule', 'decay'), [
    ('linear', lambda steps: optax.linear_schedule(2.0, 0.0, steps)),
    ('cosine', lambda steps: optax.cosine_decay_schedule(2.0, steps)),
    ('constant', lambda steps: optax.constant_schedule(2.0)),
])
@pytest.mark.parametrize('warmup', [1, 4, 12])
def test_optax_agrees_where_lengths_are_known(schedule, decay, warmup):
    rise = optax.linear_schedule(2.0 / warmup, 2.0, warmup - 1)
    joined = optax.join_schedules([rise, decay(12 - warmup + 1)], [warmup - 1])
    theirs = [float(joined(step)) for step in range(12)]
    np.testing.assert_allclose(rates(schedule, 12, warmup, peak=2.0), theirs, rtol=1e-5)


def test_optax_warmup_needs_lengths_that_are_known():
    """Why the warm-up is written here."""
    with pytest.raises(jax.errors.TracerBoolConversionError):
        jax.jit(lambda steps: optax.linear_schedule(0.0, 1.0, steps)(1))(3)
