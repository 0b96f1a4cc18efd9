"""Causal attention that never leaves a segment, with or without a cache of earlier keys.

B batch, T queries in a row, S keys in a row (T, or the slots of a cache), H heads, J key-value
heads, C width of queries and keys, Cv of values.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a row with nothing to attend to gives a mean and not NaN


class Rows(NamedTuple):
    """Where the tokens of a forward pass stand.

    segments [B, T] (0: padding) and slots [T], the queries' own; key_segments [B, S]: of everything
    they may look at, slot by slot, themselves included; cos, sin [B, T, R/2] of their positions
    (None: no rotary positions).
    """

    segments: jax.Array
    slots: jax.Array
    key_segments: jax.Array
    cos: jax.Array | None
    sin: jax.Array | None


def visible(rows: Rows, window: int) -> jax.Array:
    """Which keys a query sees: bool [B, T, S]; of its own segment, not later, within the window."""
    distance = rows.slots[:, None] - jnp.arange(rows.key_segments.shape[1])[None, :]
    near = distance >= 0
    if window:
        near = near & (distance < window)
    return near[None] & (rows.segments[:, :, None] == rows.key_segments[:, None, :])


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: jax.Array,
    scale: float,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """softmax(scale q k^T) v over the keys that are seen, softmax in float32.

    q [B, T, H, C]; k [B, S, J, C]; v [B, S, J, Cv]; seen bool [B, T, S] -> [B, T, H, Cv]; query
    head h reads key-value head h // (H/J). sinks [H]: one more logit of each head's softmax, whose
    share of the weight goes nowhere (gpt-oss).
    """
    batch, length, heads, width = q.shape
    groups = (batch, length, k.shape[2], heads // k.shape[2], width)
    scores = jnp.einsum('btjgc,bsjc->bjgts', q.reshape(groups), k,
                        preferred_element_type=jnp.float32) * scale
    scores = jnp.where(seen[:, None, None], scores, MASKED)
    if sinks is not None:
        extra = sinks.astype(jnp.float32).reshape(1, *groups[2:4], 1, 1)
        extra = jnp.broadcast_to(extra, (*scores.shape[:-1], 1))
        probs = jax.nn.softmax(jnp.concatenate([scores, extra], axis=-1), axis=-1)[..., :-1]
    else:
        probs = jax.nn.softmax(scores, axis=-1)
    out = jnp.einsum('bjgts,bsjc->btjgc', probs.astype(v.dtype), v,
                     preferred_element_type=jnp.float32)
    return out.astype(v.dtype).reshape(batch, length, heads, v.shape[-1])
