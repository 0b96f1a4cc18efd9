"""Losses of routers: balance and size of logits."""

import jax
import jax.numpy as jnp

from moe_jax.routing.routing import Routing


def balance_loss(routing: Routing, valid_N: jax.Array) -> jax.Array:
    """Switch load-balance loss of one layer over the tokens marked in valid [N]: R sum_r f_r P_r.

    f_r is the share of routed choices that went to row r, P_r the mean probability of r. Gradient
    flows through P alone (the counts are constants), so it is finite everywhere; 1 at perfect
    balance. Fedus et al. 2021, equations 4 to 6.
    """
    rows = routing.logits.shape[-1]
    weight = valid_N.astype(jnp.float32)
    total = jnp.maximum(weight.sum(), 1.0)
    share = load(routing.ids, valid_N, rows) / (total * routing.ids.shape[-1])
    mean_prob = (routing.probs * weight[:, None]).sum(axis=0) / total
    return rows * jnp.sum(jax.lax.stop_gradient(share) * mean_prob)


def z_loss(routing: Routing, valid_N: jax.Array) -> jax.Array:
    """Mean squared log-partition of the router over valid tokens (ST-MoE, equation 5)."""
    weight = valid_N.astype(jnp.float32)
    lse = jax.nn.logsumexp(routing.logits, axis=-1)
    return jnp.sum(jnp.square(lse) * weight) / jnp.maximum(weight.sum(), 1.0)


def load(ids_NK: jax.Array, valid_N: jax.Array, rows: int) -> jax.Array:
    """How many valid choices went to each router row; float32 [R]."""
    weight = jnp.broadcast_to(valid_N.astype(jnp.float32)[:, None], ids_NK.shape)
    return jnp.zeros((rows,), jnp.float32).at[ids_NK.ravel()].add(weight.ravel())
