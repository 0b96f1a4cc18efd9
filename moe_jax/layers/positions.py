"""Positions of tokens inside packed segments and branches."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = TypeVar('Array', jax.Array, np.ndarray)


def positions_in_segments(segments: jax.Array) -> jax.Array:
    """Position of each token inside its own segment; segments [B, T] -> int32 [B, T]."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)[None, :]
    previous = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    starts = jnp.where(segments != previous, index, jnp.zeros_like(index))
    return index - jax.lax.cummax(starts, axis=1)


def has_past(segments: Array) -> Array:
    """Which tokens follow another of their segment, so that they are predicted: bool [B, T-1].

    segments [B, T] (0: padding), of numpy or JAX; the first token of a row has no past.
    """
    # Of a bool array of either kind, stubs say Any.
    return (segments[:, 1:] > 0) & (segments[:, 1:] == segments[:, :-1])  # pyright: ignore[reportReturnType]


def positions_in_branches(segments: jax.Array, branches: jax.Array) -> jax.Array:
    """Position of each token on its way through trunk and branch, int32 [B, T].

    segments [B, T], branches [B, T]: 0 is a segment's trunk, and comes first. A position is the
    number of earlier tokens of the segment that are the trunk's or of the same branch.
    """
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)
    earlier = (index[:, None] > index[None, :])[None]
    same = segments[:, :, None] == segments[:, None, :]
    return (earlier & same & along(branches)).sum(axis=-1, dtype=jnp.int32)


def along(branches: jax.Array) -> jax.Array:
    """The tokens on the way to a token, bool [B, T, T]: those of the trunk and its branch."""
    keys = branches[:, None, :]
    return (keys == 0) | (keys == branches[:, :, None])
