"""Dynamic execution: which of a token's K chosen experts are really evaluated (`Config.skip`).

N tokens, K choices per token, best first. Every rule takes (routing, thresholds) and returns bool
[N, K]; the first choice is always used. It serves evaluation only; training uses all K.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from moe_jax.base.checks import choice, number, sequence
from moe_jax.routing.routing import Routing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skip:
    """Dynamic execution: which of its K chosen experts a token really uses, at evaluation.

    Raises ValueError naming the field that makes no rule.
    """

    # A key of `RULES`. 'ratio': slot k is left out where its gate is below thresholds[i][k-1] times
    # the token's largest (Lu et al. 2024, section 3.3, for K = 2). 'top_p': slots are used until
    # their probabilities sum to more than thresholds[i][0] (Huang et al. 2024, section 3.1).
    kind: str
    thresholds: tuple[tuple[float, ...], ...]  # one entry per layer, () for a dense one
    # The share of a row's tokens, those of greatest importance, that use all K experts (MC-MoE,
    # section 3.3).
    protect: float = 0.0

    def __post_init__(self) -> None:
        thresholds = tuple(
            tuple(number(f'Config.skip.thresholds[{i}]', t)
                  for t in sequence('Config.skip.thresholds', row))
            for i, row in enumerate(sequence('Config.skip.thresholds', self.thresholds)))
        object.__setattr__(self, 'thresholds', thresholds)
        choice('Config.skip.kind', self.kind, ('ratio', 'top_p'))
        object.__setattr__(self, 'protect', number('Config.skip.protect', self.protect))
        if self.protect > 1:
            raise ValueError(f'Config.skip.protect={self.protect}: a share of the tokens, at most '
                             '1')


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
    routing: Routing, skip: Skip, layer: int, *, renormalized: bool,
    protected_N: jax.Array | None = None,
) -> tuple[Routing, jax.Array]:
    """The routing with the gates of skipped choices zero, and which choices are used [N, K].

    renormalized: the gate convention renormalizes, so the used gates are scaled to the sum that all
    had; raw probabilities stay. Tokens marked in `protected` [N] use all K.
    """
    used = RULES[skip.kind](routing, skip.thresholds[layer])
    if protected_N is not None:
        used = used | protected_N[:, None]
    gates = jnp.where(used, routing.gates, 0.0)
    if renormalized:
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
