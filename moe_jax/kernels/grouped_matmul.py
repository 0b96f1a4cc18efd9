"""lhs [S, D] @ rhs[expert of the row] -> [S, F], by the first way that fits.

S rows sorted by expert, E experts, D and F widths. Inside, rows lie in P places, where each
expert's begin at a multiple of a block, as `grouped_ways` wants them.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moe_jax.kernels.gather import gather_rows
from moe_jax.kernels.table import implementation
from moe_jax.kernels.trial import VARIABLE, choose


class Aligned(NamedTuple):
    """Where rows go: sizes [E], multiples of the block; place [S] of each row (P: none); source [P]
    of each place (S: none)."""

    sizes: jax.Array
    place: jax.Array
    source: jax.Array


def grouped_matmul(
    lhs: jax.Array, rhs: jax.Array, sizes: jax.Array, *, ways: tuple[str, ...] | None = None
) -> jax.Array:
    """y [S, F] with y[s] = lhs[s] @ rhs[e] for row s in group e, summed in float32, in lhs's dtype.

    lhs [S, D]; rhs [E, D, F]; sizes int32 [E]: rows of each group, in order. Rows past the last
    group give zeros. Gradients come back in the dtypes of lhs and rhs. ways: names of
    `grouped_ways`, of which the first that fits is used; by default those of `choose`.
    """
    ways = choose() if ways is None else ways
    (rows, d), (experts, _, f) = lhs.shape, rhs.shape
    way, block = pick(ways, rows, experts, d, f, lhs.dtype)
    if block == 1:
        return product(way, 1, lhs, rhs, sizes)
    to = align(sizes, rows, block)
    lhs = gather_rows(lhs, to.source, to.place[:, None])
    y = product(way, block, lhs, rhs, to.sizes)
    return gather_rows(y, to.place, to.source[:, None])


def pick(
    ways: tuple[str, ...], rows: int, experts: int, d: int, f: int, dtype: Any
) -> tuple[str, int]:
    """The first of the ways that takes such factors, and its block."""
    for name in ways:
        way = implementation(name)
        block = way.block(rows, experts)
        if way.fits(block, d, f, dtype) and way.fits(block, f, d, dtype):
            return name, block
    raise ValueError(f'grouped matmul: [{rows}, {d}] @ [{experts}, {d}, {f}] in {dtype} does not '
                     f'fit {" or ".join(ways)}; {VARIABLE}=blocks takes any')


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(
    way: str, block: int, lhs: jax.Array, rhs: jax.Array, sizes: jax.Array
) -> jax.Array:
    """As `grouped_matmul` by one way, for sizes that are multiples of its block."""
    return implementation(way).matmul(lhs, rhs.astype(lhs.dtype), sizes, block, turned=False)


def _forward(way, block, lhs, rhs, sizes):
    return product(way, block, lhs, rhs, sizes), (lhs, rhs, sizes)


def _backward(way, block, saved, dy):
    lhs, rhs, sizes = saved
    found = implementation(way)
    return (found.matmul(dy, rhs.astype(lhs.dtype), sizes, block, turned=True),
            found.outer(lhs, dy, sizes, block, rhs.dtype), None)


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
