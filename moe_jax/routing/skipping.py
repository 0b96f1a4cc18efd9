"""Dynamic execution: which of a token's K chosen experts are really evaluated (`Config.skip`).

N tokens, K choices per token, best first. Every rule takes (routing, thresholds) and returns bool
[N, K]; the first choice is always used. It serves evaluation only; training uses all K.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from moe_jax.config.parts import Skip
from moe_jax.routing.gates import GATE
from moe_jax.routing.routing import Routing


def ratio(routing: Routing, thresholds: Sequence[float]) -> jax.Array:
    """Slot k is used where its gate is at least thresholds[k-1] times the token's largest."""
    slots = routing.gates.shape[-1]  # fewer than K where a layer has fewer experts
    least = jnp.asarray((0.0, *thresholds)[:slots], jnp.float32)[None]
    return routing.gates >= least * routing.gates.max(axis=-1, keepdims=True)


def top_p(routing: Routing, thresholds: Sequence[float]) -> jax.Array:
    """The shortest run of slots whose probabilities sum to more than thresholds[0], at most K."""
    probs = jnp.take_along_axis(routing.probs, routing.ids, axis=-1)
    before = jnp.cumsum(probs, axis=-1)[:, :-1]
    before = jnp.concatenate([jnp.zeros_like(probs[:, :1]), before], axis=-1)
    return (before <= thresholds[0]).at[:, 0].set(True)


RULES: dict[str, Callable[[Routing, Sequence[float]], jax.Array]] = {
    'ratio': ratio, 'top_p': top_p,
}


def apply(
    routing: Routing, skip: Skip, layer: int, gate: str, protected_N: jax.Array | None = None
) -> tuple[Routing, jax.Array]:
    """The routing with the gates of skipped choices zero, and which choices are used [N, K].

    Where the gate convention renormalises, the used gates are scaled to the sum that all had; raw
    probabilities stay. Tokens marked in `protected` [N] use all K.
    """
    used = RULES[skip.kind](routing, skip.thresholds[layer])
    if protected_N is not None:
        used = used | protected_N[:, None]
    gates = jnp.where(used, routing.gates, 0.0)
    if GATE[gate].renormalised:
        total, left = (g.sum(axis=-1, keepdims=True) for g in (routing.gates, gates))
        gates = gates * jnp.where(left > 0, total / jnp.where(left > 0, left, 1.0), 1.0)
    return routing._replace(gates=gates), used


def protected(importance_BT: jax.Array, segments_BT: jax.Array, share: float) -> jax.Array:
    """The floor(share x tokens) most important tokens of each row, bool [B, T].

    Padding is never among them; of equals the earlier one comes first. Single tokens, as in
    cached generation, are never protected (share < 1).
    """
    valid = segments_BT > 0
    tokens = valid.sum(axis=1, keepdims=True).astype(jnp.float32)
    count = jnp.floor(share * tokens + 1e-6).astype(jnp.int32)
    order = jnp.argsort(-jnp.where(valid, importance_BT, -jnp.inf), axis=1, stable=True)
    rank = jnp.argsort(order, axis=1, stable=True)
    return valid & (rank < count)
