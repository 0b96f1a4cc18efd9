"""The values that pass between a router and the rest: what it reads, and what it chose.

N tokens, R router rows, K choices per token, C places of a row. Everything here is float32,
whatever the model's compute dtype. How the chosen experts are then evaluated is another room's
business (`moe_jax.experts`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class RouterInput(NamedTuple):
    """What a router may read of the tokens of one layer.

    Designs say which of the optional fields they need (`Traits.reads`).
    """

    x: jax.Array  # [N, D], the layer's input
    segments: jax.Array  # int32 [N], 0 for padding
    rows: int = 1  # B, rows of the batch: token n is in row n // (N / B)
    tokens: jax.Array | None = None  # int32 [N], token ids
    key: jax.Array | None = None  # for noise in training
    train: bool = False


class LayerRows(NamedTuple):
    """The router rows of one layer."""

    count: int  # R
    topk: int  # K, places of a token's choices
    closed: tuple[bool, ...] | None = None  # [R], rows that are never chosen; None: none


class Slots(NamedTuple):
    """A routing in which experts choose tokens: place c of row r holds token tokens[r, c]."""

    tokens: jax.Array  # int32 [R, C]; N where the place is empty
    gates: jax.Array  # [R, C]; 0 where the place is empty


class Routing(NamedTuple):
    """The choices of every token, best first."""

    ids: jax.Array  # int32 [N, K], router rows
    gates: jax.Array  # [N, K]
    logits: jax.Array  # [N, R]
    probs: jax.Array  # [N, R], shares of one
    used: jax.Array | None = None  # bool [N, K], which choices count; None: all
    slots: Slots | None = None  # the same choices by row, where rows chose


def as_choices(slots: Slots, logits: jax.Array, probs: jax.Array) -> Routing:
    """The routing of `slots` by token: K = R places, those of rows that took the token first."""
    tokens, rows = logits.shape
    row = jnp.broadcast_to(jnp.arange(rows, dtype=jnp.int32)[:, None], slots.tokens.shape)
    gates = jnp.zeros((tokens, rows), jnp.float32)
    gates = gates.at[slots.tokens, row].set(slots.gates, mode='drop')
    used = jnp.zeros((tokens, rows), bool).at[slots.tokens, row].set(True, mode='drop')
    ids = jnp.argsort(jnp.where(used, -gates, jnp.inf), axis=1, stable=True).astype(jnp.int32)
    gates, used = (jnp.take_along_axis(a, ids, axis=1) for a in (gates, used))
    return Routing(ids, gates, logits, probs, used, slots)
