"""Causal attention that never leaves a segment, with or without a cache of earlier keys.

B batch, T queries in a row, S keys in a row (T, or the slots of a cache), H heads, J key-value
heads, C width of queries and keys, Cv of values.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe_jax.layers.positions import along

MASKED = -1e30  # finite, so that a row with nothing to attend to gives a mean and not NaN


class Rows(NamedTuple):
    """Where the tokens of a forward pass stand.

    segments [B, T] (0: padding) and slots [T], the queries' own; key_segments [B, S]: of everything
    they may look at, slot by slot, themselves included; cos, sin [B, T, R/2] of their positions
    (None: no rotary positions). Where segments have branches, the queries' branches and positions,
    both [B, T]; the keys are the queries' own tokens there. tokens [B, T]: ids of the queries, for
    routers that read them.
    """

    segments: jax.Array
    slots: jax.Array
    key_segments: jax.Array
    cos: jax.Array | None
    sin: jax.Array | None
    branches: jax.Array | None = None
    positions: jax.Array | None = None
    tokens: jax.Array | None = None


def visible(rows: Rows, window: int) -> jax.Array:
    """The keys that a query sees, bool [B, T, S]: of its own segment, not later, within the window.

    Of a segment with branches it sees the trunk, which is branch 0, and its own branch; the window
    counts positions there, as the trunk's end may be many slots away.
    """
    distance = rows.slots[:, None] - jnp.arange(rows.key_segments.shape[1])[None, :]
    near = distance >= 0
    if window and rows.branches is None:
        near = near & (distance < window)
    seen = near[None] & (rows.segments[:, :, None] == rows.key_segments[:, None, :])
    if rows.branches is None:
        return seen
    seen = seen & along(rows.branches)
    if window:
        assert rows.positions is not None  # as branches are there
        seen = seen & (rows.positions[:, :, None] - rows.positions[:, None, :] < window)
    return seen


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: jax.Array,
    scale: float,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """softmax(scale q k^T) v over the keys that are seen, [B, T, H, Cv]; arguments as below."""
    return mix(probabilities(q, k, seen, scale, sinks), v)


def probabilities(
    q: jax.Array, k: jax.Array, seen: jax.Array, scale: float, sinks: jax.Array | None = None
) -> jax.Array:
    """softmax(scale q k^T) over the keys that are seen, float32 [B, J, H/J, T, S].

    q [B, T, H, C]; k [B, S, J, C]; seen bool [B, T, S]; query head h reads key-value head
    h // (H/J). sinks [H]: one more logit of each head's softmax, whose share of the weight goes
    nowhere (gpt-oss).
    """
    batch, length, heads, width = q.shape
    groups = (batch, length, k.shape[2], heads // k.shape[2], width)
    scores = jnp.einsum('btjgc,bsjc->bjgts', q.reshape(groups), k,
                        preferred_element_type=jnp.float32) * scale
    scores = jnp.where(seen[:, None, None], scores, MASKED)
    if sinks is None:
        return jax.nn.softmax(scores, axis=-1)
    extra = sinks.astype(jnp.float32).reshape(1, *groups[2:4], 1, 1)
    extra = jnp.broadcast_to(extra, (*scores.shape[:-1], 1))
    return jax.nn.softmax(jnp.concatenate([scores, extra], axis=-1), axis=-1)[..., :-1]


def mix(probs: jax.Array, v: jax.Array) -> jax.Array:
    """Values [B, S, J, Cv] weighted by `probabilities`, [B, T, H, Cv]."""
    batch, kv_heads, each, length, _ = probs.shape
    out = jnp.einsum('bjgts,bsjc->btjgc', probs.astype(v.dtype), v,
                     preferred_element_type=jnp.float32)
    return out.astype(v.dtype).reshape(batch, length, kv_heads * each, v.shape[-1])


def received(probs: jax.Array, segments: jax.Array) -> jax.Array:
    """The attention each key gets, summed over queries that are not padding, mean over heads.

    probs as `probabilities` gives them, segments [B, T] of the queries -> [B, S] float32.
    """
    return jnp.einsum('bjgts,bt->bs', probs, (segments > 0).astype(jnp.float32)) / (
        probs.shape[1] * probs.shape[2])
