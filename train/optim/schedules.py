"""Learning-rate schedules: a linear warm-up, then one of optax's decays.

Peak, warm-up and length are arguments of the compiled step, so that runs that differ in them share
it. optax's own warm-up schedules cannot be that: they branch in Python on the number of steps. So
its decays are built over a length of 1 and read at the share of the run that is done.
"""

import jax
import jax.numpy as jnp
import optax

# Share of the peak learning rate as a function of progress in [0, 1) after the warm-up.
SCHEDULES: dict[str, optax.Schedule] = {
    'linear': optax.linear_schedule(1.0, 0.0, transition_steps=1),  # 1 - progress
    'cosine': optax.cosine_decay_schedule(1.0, decay_steps=1),  # (1 + cos(pi progress)) / 2
    'constant': optax.constant_schedule(1.0),
}


def learning_rate(
    schedule: str, step: jax.Array, peak: jax.Array, warmup: jax.Array, steps: jax.Array
) -> jax.Array:
    """Learning rate of the update that follows `step` finished ones; float32, all traced.

    peak * (step + 1) / warmup up to the peak at the last warm-up step, then peak *
    SCHEDULES[schedule](progress), progress reaching 1 only after the last step, so that neither
    the first nor the last update is empty.
    """
    done = step.astype(jnp.float32)
    rise = jnp.maximum(warmup.astype(jnp.float32), 1.0)
    fall = jnp.maximum(steps.astype(jnp.float32) - rise + 1.0, 1.0)
    progress = jnp.clip((done - rise + 1.0) / fall, 0.0, 1.0)
    return peak * jnp.minimum((done + 1.0) / rise, SCHEDULES[schedule](progress))
