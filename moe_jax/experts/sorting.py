"""The rows of a layer sorted by expert. S rows, E experts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sorted(NamedTuple):
    """Rows in the order of their experts, earlier rows first; those without an expert come last."""

    order: jax.Array  # int32 [S]: the row at each place
    inverse: jax.Array  # int32 [S]: the place of each row
    sizes: jax.Array  # int32 [E]: rows of each expert


def by_expert(expert_S: jax.Array, experts: int) -> Sorted:
    """The order of rows by their experts; expert_S int [S], E where a row has none."""
    order = jnp.argsort(expert_S, stable=True).astype(jnp.int32)
    inverse = jnp.zeros_like(order).at[order].set(jnp.arange(expert_S.size, dtype=jnp.int32))
    sizes = jnp.zeros((experts + 1,), jnp.int32).at[expert_S].add(1)[:experts]
    return Sorted(order, inverse, sizes)
