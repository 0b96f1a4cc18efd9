"""lhs [S, D] @ rhs[expert of the row] -> [S, F], by the backend that a choice names.

S rows sorted by expert, E experts, D and F widths. Inside, rows lie in P places, where those of
each expert begin at a multiple of a block, as the backends of `table` want them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe_jax.base.vjp import custom_vjp
from moe_jax.kernels import trial
from moe_jax.kernels.gather import gather_rows
from moe_jax.kernels.table import Choice, backend


class Aligned(NamedTuple):
    """The places of rows, those of each expert beginning at a multiple of the block."""

    sizes: jax.Array  # int32 [E], multiples of the block
    place: jax.Array  # int32 [S]: of each row, P where it has none
    source: jax.Array  # int32 [P]: the row at each place, S where there is none


def grouped_matmul(
    lhs: jax.Array, rhs: jax.Array, sizes: jax.Array, *, names: tuple[str, ...] | None = None
) -> jax.Array:
    """y [S, F] with y[s] = lhs[s] @ rhs[e] for row s in group e, summed in float32, in lhs's dtype.

    lhs [S, D]; rhs [E, D, F]; sizes int32 [E]: rows of each group, in order. Rows past the last
    group give zeros. Gradients come back in the dtypes of lhs and rhs. names: of the backends to
    choose among, by default those that work here.
    """
    experts, d, f = rhs.shape
    choice = trial.choose(lhs.shape[0], experts, d, f, lhs.dtype, names)
    if choice.block == 1:
        return product(choice, lhs, rhs, sizes)
    to = align(sizes, lhs.shape[0], choice.block)
    lhs = gather_rows(lhs, to.source, to.place[:, None])
    return gather_rows(product(choice, lhs, rhs, to.sizes), to.place, to.source[:, None])


@custom_vjp(0)
def product(choice: Choice, lhs: jax.Array, rhs: jax.Array, sizes: jax.Array) -> jax.Array:
    """As `grouped_matmul` by the chosen backend, for sizes that are multiples of its block."""
    return backend(choice.name).matmul(lhs, rhs.astype(lhs.dtype), sizes, choice.block,
                                       transposed=False)


Factors = tuple[jax.Array, jax.Array, jax.Array]  # lhs, rhs, sizes


def _forward(
    choice: Choice, lhs: jax.Array, rhs: jax.Array, sizes: jax.Array
) -> tuple[jax.Array, Factors]:
    return product(choice, lhs, rhs, sizes), (lhs, rhs, sizes)


def _backward(
    choice: Choice, saved: Factors, dy: jax.Array
) -> tuple[jax.Array, jax.Array, None]:
    (lhs, rhs, sizes), chosen = saved, backend(choice.name)
    return (chosen.matmul(dy, rhs.astype(lhs.dtype), sizes, choice.block, transposed=True),
            chosen.outer(lhs, dy, sizes, choice.block, rhs.dtype), None)


product.defvjp(_forward, _backward)


def align(sizes: jax.Array, rows: int, block: int) -> Aligned:
    """Places for rows sorted by expert, so that each expert's begin at a multiple of block."""
    experts = sizes.shape[0]
    padded = (sizes + block - 1) // block * block
    moved = jnp.cumsum(padded) - padded - jnp.cumsum(sizes) + sizes
    row = jnp.arange(rows, dtype=jnp.int32)
    expert = jnp.searchsorted(jnp.cumsum(sizes), row, side='right', method='compare_all')
    size = aligned_rows(rows, experts, block)
    moved = moved.at[expert].get(mode='fill', fill_value=size)
    place = jnp.minimum(row + moved.astype(jnp.int32), size)
    source = jnp.full((size,), rows, jnp.int32).at[place].set(row, mode='drop')
    return Aligned(padded.astype(jnp.int32), place, source)


def aligned_rows(rows: int, experts: int, block: int) -> int:
    """P: enough for any sizes, a multiple of block."""
    return (rows + min(experts, rows) * (block - 1)) // block * block
