"""What training minimises: weighted next-token cross-entropy and the router's auxiliary losses."""

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
    # Shifting the targets and not the logits saves XLA:CPU a copy of every [B, T, V] array. The
    # last position predicts nothing: weight 0.
    targets = jnp.roll(tokens, -1, axis=1)
    weights = jnp.roll(weights, -1, axis=1).at[:, -1].set(0.0)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    nats = jax.nn.logsumexp(logits, axis=-1) - chosen
    return jnp.sum(nats * weights), jnp.sum(weights)


def auxiliary(out: dict[str, Any]) -> jax.Array:
    """Balance plus z-loss of a forward pass, summed over layers, scaled by the config."""
    return out['balance'] + out['zloss']
