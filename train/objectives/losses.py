"""Terms of losses: cross-entropy, the routers' auxiliary losses, distances to a teacher.

B rows, T tokens, V vocabulary, D width. Each is a sum, so that micro-batches add up to exactly what
one big batch gives.
"""

from typing import Any

import jax
import jax.numpy as jnp


def cross_entropy(
    logits: jax.Array, tokens: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Summed weighted cross-entropy in nats, and the weight total; both scalars, float32.

    logits [B, T, V] float32, tokens [B, T], weights [B, T] float32: tokens[:, t] is predicted from
    logits[:, t-1] with weights[:, t]; weights[:, 0] counts for nothing. A sum and a total, so that
    micro-batches add up to the exact mean of the whole batch.
    """
    # Shifting the targets and not the logits saves XLA:CPU a copy of every [B, T, V] array.
    targets, weights = jnp.roll(tokens, -1, axis=1), predicted(weights)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nats = jax.nn.logsumexp(logits, axis=-1) - chosen
    return jnp.sum(nats * weights), jnp.sum(weights)


def auxiliary(out: dict[str, Any]) -> jax.Array:
    """The router's losses of a forward pass, summed over layers, scaled by the config."""
    return sum(out['losses'].values(), jnp.zeros((), jnp.float32))


def predicted(weights: jax.Array) -> jax.Array:
    """Weights [B, T] of what each position predicts, from those of the tokens; 0 for the last."""
    return jnp.roll(weights, -1, axis=1).at[:, -1].set(0.0)


def divergence(
    teacher: jax.Array, student: jax.Array, temperature: jax.Array, weights: jax.Array
) -> jax.Array:
    """Summed weighted tau^2 KL(softmax(z_T / tau) || softmax(z_S / tau)), nats, a scalar float32.

    teacher, student: logits [B, T, V] or [B, T, classes]; weights as in `cross_entropy`, whose
    total makes it a mean. tau^2 keeps the gradient's size at any temperature (Hinton et al. 2015,
    section 2.1).
    """
    log_t, log_s = (jax.nn.log_softmax(z.astype(jnp.float32) / temperature, axis=-1)
                    for z in (teacher, student))
    nats = (jnp.exp(log_t) * jnp.where(jnp.isneginf(log_t), 0.0, log_t - log_s)).sum(axis=-1)
    return jnp.square(temperature) * jnp.sum(nats * predicted(weights))


def with_rest(logits: jax.Array, ids: jax.Array, temperature: jax.Array) -> jax.Array:
    """Logits [..., k+1] of k classes and of all others as one more; logits [..., V], ids [..., k].

    The last is tau log sum exp(z / tau) over the others, so that a softmax at temperature tau gives
    it their probability.
    """
    top = jnp.take_along_axis(logits, ids, axis=-1)
    others = jnp.put_along_axis(logits, ids, -jnp.inf, axis=-1, inplace=False)
    rest = temperature * jax.nn.logsumexp(others / temperature, axis=-1, keepdims=True)
    return jnp.concatenate([top, rest], axis=-1)


def stream_error(teacher: jax.Array, student: jax.Array, valid: jax.Array) -> jax.Array:
    """Sum over valid [B, T] tokens of the mean over D of (student - teacher)^2, each [B, T, D]."""
    gap = student.astype(jnp.float32) - teacher.astype(jnp.float32)
    return jnp.sum(jnp.square(gap).mean(axis=-1) * valid.astype(jnp.float32))
