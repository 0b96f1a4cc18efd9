"""The grouped matmul on NVIDIA GPUs as Triton kernels, written with Pallas.

P rows, those of each expert beginning at a multiple of `block`, E experts, D and F widths. For what
`mosaic` does not take: older cards, float32, small blocks. A program makes one tile of the
output; as groups begin at multiples of a tile's rows, a tile has one expert and nothing is masked.

float32 factors are multiplied as jax's default precision says (TF32 on recent cards).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.typing import DTypeLike

LEAST = 16  # the least side of a matrix product in Triton
COPIED = 4  # rows that a program copies, at most
WIDEST = 4096  # numbers of a row that are copied at a time
BAND = 8  # rows of tiles made before the next column, so that factors stay in the L2 cache

Ref = Any  # an array in memory, as Pallas hands it to a kernel


class Tiles(NamedTuple):
    """Rows and columns of a tile, its step along the summed axis, warps and stages of loading."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


def tiles_for(rows: int, columns: int, inner: int, dtype: DTypeLike) -> Tiles | None:
    """The tiles for axes of such lengths; None where one is no multiple of 16."""
    if any(n % LEAST for n in (rows, columns, inner)):
        return None
    wide = jnp.dtype(dtype).itemsize > 2
    return Tiles(_largest(rows, 64 if wide else 128), _largest(columns, 128),
                 _largest(inner, 32 if wide else 64), 4, 3)


def matmul(
    lhs: jax.Array, rhs: jax.Array, sizes: jax.Array, block: int, *, transposed: bool,
    interpret: bool = False,
) -> jax.Array:
    """y [P, F] with y[p] = lhs[p] @ rhs[e], row p of lhs [P, D] in group e; rhs [E, D, F].

    sizes int32 [E], multiples of block; rows past the last group give zeros. transposed: rhs is
    [E, F, D].
    """
    (p, d), e, f = lhs.shape, rhs.shape[0], rhs.shape[1 if transposed else 2]
    tiles = tiles_for(block, f, d, lhs.dtype)
    assert tiles is not None  # `fits` has said so
    tile = jnp.arange(p // tiles.rows, dtype=jnp.int32)
    expert = jnp.searchsorted(jnp.cumsum(sizes // tiles.rows), tile, side='right',
                              method='compare_all').astype(jnp.int32)
    steps = jnp.where(expert < e, d // tiles.inner, 0).astype(jnp.int32)
    return pl.pallas_call(
        partial(_matmul, tiles=tiles, transposed=transposed),
        out_shape=jax.ShapeDtypeStruct((p, f), lhs.dtype),
        grid=(p // tiles.rows * (f // tiles.columns),), name='grouped_matmul', interpret=interpret,
        compiler_params=_params(tiles),
    )(jnp.minimum(expert, e - 1), steps, lhs, rhs)


def outer(
    lhs: jax.Array, dy: jax.Array, sizes: jax.Array, block: int, dtype: DTypeLike, *,
    interpret: bool = False,
) -> jax.Array:
    """[E, D, F] with lhs[rows of e].T @ dy[rows of e] at e; lhs [P, D], dy [P, F], in dtype.

    sizes int32 [E], multiples of block.
    """
    e, d, f = sizes.shape[0], lhs.shape[1], dy.shape[1]
    tiles = tiles_for(d, f, block, lhs.dtype)
    assert tiles is not None  # `fits` has said so
    return pl.pallas_call(
        partial(_outer, tiles=tiles),
        out_shape=jax.ShapeDtypeStruct((e, d, f), dtype),
        grid=(e * (d // tiles.rows) * (f // tiles.columns),), name='grouped_outer',
        interpret=interpret, compiler_params=_params(tiles),
    )(jnp.cumsum(sizes) - sizes, sizes // tiles.inner, lhs, dy)


def take(x: jax.Array, index: jax.Array, *, interpret: bool = False) -> jax.Array:
    """x[index], with zeros where index is M or more; x [M, D], index int32 [P] -> [P, D].

    D a multiple of LEAST.
    """
    wide, rows = _largest(x.shape[1], WIDEST), _largest(len(index), COPIED)
    return pl.pallas_call(
        partial(_take, wide=wide, copied=rows),
        out_shape=jax.ShapeDtypeStruct((len(index), x.shape[1]), x.dtype),
        grid=(len(index) // rows,), name='take_rows', interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
    )(index, x)


def _take(index_ref: Ref, x_ref: Ref, out_ref: Ref, *, wide: int, copied: int) -> None:
    first, rows = pl.program_id(0) * copied, x_ref.shape[0]
    for place in range(copied):
        row = index_ref[first + place]
        for start in range(0, x_ref.shape[1], wide):
            numbers = triton.load(x_ref.at[jnp.minimum(row, rows - 1), pl.ds(start, wide)])
            numbers = jnp.where(row < rows, numbers, jnp.zeros_like(numbers))
            triton.store(out_ref.at[first + place, pl.ds(start, wide)], numbers)


def _matmul(
    expert_ref: Ref, steps_ref: Ref, lhs_ref: Ref, rhs_ref: Ref, out_ref: Ref, *, tiles: Tiles,
    transposed: bool
) -> None:
    row, column = _in_bands(pl.program_id(0), out_ref.shape[0] // tiles.rows,
                            out_ref.shape[1] // tiles.columns)
    expert = expert_ref[row]
    rows = pl.ds(row * tiles.rows, tiles.rows)
    columns = pl.ds(column * tiles.columns, tiles.columns)

    def step(i, total):
        k = pl.ds(i * tiles.inner, tiles.inner)
        a = triton.load(lhs_ref.at[rows, k])
        side = (columns, k) if transposed else (k, columns)
        b = triton.load(rhs_ref.at[expert, *side])
        return total + triton.dot(a, b, trans_b=transposed)

    zero = jnp.zeros((tiles.rows, tiles.columns), jnp.float32)
    total = jax.lax.fori_loop(0, steps_ref[row], step, zero)
    triton.store(out_ref.at[rows, columns], total.astype(out_ref.dtype))


def _outer(
    first_ref: Ref, steps_ref: Ref, lhs_ref: Ref, dy_ref: Ref, out_ref: Ref, *, tiles: Tiles
) -> None:
    down, across = out_ref.shape[1] // tiles.rows, out_ref.shape[2] // tiles.columns
    expert = pl.program_id(0) // (down * across)
    row, column = _in_bands(pl.program_id(0) % (down * across), down, across)
    first = first_ref[expert]
    rows = pl.ds(row * tiles.rows, tiles.rows)
    columns = pl.ds(column * tiles.columns, tiles.columns)

    def step(i, total):
        k = pl.ds(first + i * tiles.inner, tiles.inner)
        a, b = triton.load(lhs_ref.at[k, rows]), triton.load(dy_ref.at[k, columns])
        return total + triton.dot(a, b, trans_a=True)

    zero = jnp.zeros((tiles.rows, tiles.columns), jnp.float32)
    total = jax.lax.fori_loop(0, steps_ref[expert], step, zero)
    triton.store(out_ref.at[expert, rows, columns], total.astype(out_ref.dtype))


def _in_bands(i: jax.Array, rows: int, columns: int) -> tuple[jax.Array, jax.Array]:
    """Row and column of tile i: down a band of rows, column after column."""
    first = i // (BAND * columns) * BAND
    inside, high = i % (BAND * columns), jnp.minimum(rows - first, BAND)
    return first + inside % high, inside // high


def _largest(length: int, most: int) -> int:
    """The largest power of two up to `most` that divides length."""
    return min(most, length & -length)


def _params(tiles: Tiles) -> triton.CompilerParams:
    return triton.CompilerParams(num_warps=tiles.warps, num_stages=tiles.stages)
