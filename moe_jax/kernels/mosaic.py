"""The grouped matmul on NVIDIA Hopper: tensor-core kernels, written with Pallas Mosaic GPU.

P rows, those of each expert beginning at a multiple of `block`, E experts, D and F widths, 16 bits.

A thread block stays on its multiprocessor and takes one tile of the output after another. Of its
three warpgroups one brings tiles of both factors into shared memory, in a ring of `stages`, and two
multiply, each a half of the tile. As groups begin at multiples of a tile's rows, a tile has one
expert, and nothing is masked. A tile of no expert takes no steps and is written as zeros.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu
from jax.typing import DTypeLike

from moe_jax.kernels import target

INNER = 64  # numbers of a step along the axis that is summed over; 128 bytes, one swizzle
STORED = 64  # rows written at a time, 128 bytes wide
MEMORY_REGISTERS = 40  # of a thread that only moves data
MULTIPROCESSORS = 132  # of an H100 and an H200, where the target does not say
HALF = (jnp.bfloat16, jnp.float16)


class Tiles(NamedTuple):
    """Rows and columns of a tile of the output, steps in flight, and what the warpgroups split.

    Tiles are taken in bands of `band` rows of tiles, so that both factors stay in the L2 cache.
    """

    rows: int
    columns: int
    stages: int
    by_rows: bool
    band: int = 8

    @property
    def half(self) -> tuple[int, int]:
        """Rows and columns of one warpgroup."""
        rows, columns = self.rows, self.columns
        return (rows // 2, columns) if self.by_rows else (rows, columns // 2)


class _Tile(NamedTuple):
    """One tile: factors, the index of their block at step k, steps, and where the tile goes."""

    lhs: Any
    lhs_index: Callable[[Any], tuple[Any, Any]]
    rhs: Any
    rhs_index: Callable[[Any], tuple[Any, Any]]
    steps: Any
    out: Any


def tiles_for(rows: int, columns: int) -> Tiles | None:
    """The tiles for an output of so many rows (the block of the groups, or D) and columns.

    256 columns keep the tensor cores busy; None where the columns are no multiple of 64.
    """
    if rows % 128 == 0:
        options = (Tiles(128, 256, 4, False), Tiles(128, 192, 4, True), Tiles(128, 128, 5, True),
                   Tiles(128, 64, 6, True))
    else:
        options = (Tiles(64, 256, 4, False), Tiles(64, 128, 5, False))
    if rows % 64:
        return None
    return next((t for t in options if columns % t.columns == 0), None)


def matmul(
    lhs: jax.Array, rhs: jax.Array, sizes: jax.Array, block: int, *, transposed: bool
) -> jax.Array:
    """y [P, F] with y[p] = lhs[p] @ rhs[e], row p of lhs [P, D] in group e; rhs [E, D, F].

    sizes int32 [E], multiples of block; rows past the last group give zeros. transposed: rhs is
    [E, F, D].
    """
    (p, d), e, f = lhs.shape, rhs.shape[0], rhs.shape[1 if transposed else 2]
    tiles = tiles_for(block, f)
    assert tiles is not None  # `fits` has said so
    bands = partial(_in_bands, rows=p // tiles.rows, columns=f // tiles.columns, band=tiles.band)
    ends = jnp.cumsum(sizes // tiles.rows)
    expert = jnp.searchsorted(ends, jnp.arange(p // tiles.rows, dtype=jnp.int32), side='right',
                              method='compare_all').astype(jnp.int32)

    def at(i, expert, lhs, rhs, out):
        row, column = bands(i)
        own = expert[row]
        return _Tile(
            lhs, lambda k: (row, k),
            rhs.at[jnp.minimum(own, e - 1)],
            lambda k: (column, k) if transposed else (k, column),
            jnp.where(own < e, d // INNER, 0).astype(jnp.int32),
            _part(out, row, column, tiles))

    body = partial(_body, tiles, (False, transposed), p // tiles.rows * (f // tiles.columns), at)
    return _kernel(body, (p, f), lhs.dtype, 'grouped_matmul')(expert, lhs, rhs)


def outer(lhs: jax.Array, dy: jax.Array, sizes: jax.Array, dtype: DTypeLike) -> jax.Array:
    """[E, D, F] with lhs[rows of e].T @ dy[rows of e] at e; lhs [P, D], dy [P, F], in dtype.

    sizes int32 [E], multiples of INNER.
    """
    e, d, f = sizes.shape[0], lhs.shape[1], dy.shape[1]
    tiles = tiles_for(d, f)
    assert tiles is not None  # `fits` has said so
    rows, columns = d // tiles.rows, f // tiles.columns
    bands = partial(_in_bands, rows=rows, columns=columns, band=tiles.band)
    first = (jnp.cumsum(sizes) - sizes) // INNER

    def at(i, first, steps, lhs, dy, out):
        own = jax.lax.div(i, jnp.int32(rows * columns))
        row, column = bands(jax.lax.rem(i, jnp.int32(rows * columns)))
        start = first[own]
        return _Tile(lhs, lambda k: (start + k, row), dy, lambda k: (start + k, column),
                     steps[own], _part(out.at[own], row, column, tiles))

    body = partial(_body, tiles, (True, False), e * rows * columns, at)
    return _kernel(body, (e, d, f), dtype, 'grouped_outer')(first, sizes // INNER, lhs, dy)


def _kernel(
    body: Callable[..., None], shape: tuple[int, ...], dtype: DTypeLike, name: str
) -> Callable[..., jax.Array]:
    """The kernel of all multiprocessors that writes an output of this shape."""
    count = target.cores() or MULTIPROCESSORS
    return gpu.kernel(
        body, out_type=jax.ShapeDtypeStruct(shape, dtype), grid=(count,), grid_names=('sm',),
        num_threads=3, thread_name='wg', kernel_name=name,
        compiler_params=gpu.CompilerParams(lowering_semantics=gpu.LoweringSemantics.Warpgroup))


def _body(
    tiles: Tiles, transposed: tuple[bool, bool], count: int, at: Callable[..., _Tile], *refs: Any
) -> None:
    """The kernel of one thread block: its share of the tiles, and shared memory for all of them."""
    lhs, rhs, out = refs[-3:]
    rows, columns = tiles.half
    wide = 128 // jnp.dtype(out.dtype).itemsize
    stored = (min(STORED, rows), min(wide, columns))

    def run(buffers, staged):
        @gpu.nd_loop((count,), collective_axes='sm')
        def _(loop):
            tile = at(loop.index[0], *refs)
            finish = partial(_accumulate, tiles, staged, tile.out)
            step = partial(_step, tiles, transposed)
            pipeline = _pipeline(tiles, transposed, tile, step, finish)
            pipeline(tile.lhs, tile.rhs, allocations=buffers)

    still = _Tile(None, lambda k: (k, k), None, lambda k: (k, k), jnp.int32(1), None)
    idle = _pipeline(tiles, transposed, still, _nothing, _nothing)
    flat = rhs.at[0] if len(rhs.shape) == 3 else rhs
    pl.run_scoped(
        run, idle.get_allocations(lhs, flat),
        gpu.SMEM((2, 2, *stored), out.dtype, transforms=_swizzled(stored[1], out.dtype)),
        collective_axes='wg')
    gpu.wait_smem_to_gmem(0, wait_read_only=True)


def _pipeline(
    tiles: Tiles, transposed: tuple[bool, bool], tile: _Tile, step: Callable[..., Any],
    finish: Callable[..., None]
) -> Callable[..., None]:
    """Steps over blocks of both factors, which the third warpgroup brings."""
    lhs_block, rhs_block = (tiles.rows, INNER), (INNER, tiles.columns)
    blocks = ((lhs_block[::-1] if transposed[0] else lhs_block, tile.lhs_index),
              (rhs_block[::-1] if transposed[1] else rhs_block, tile.rhs_index))
    specs = [gpu.BlockSpec(shape, index, memory_space=gpu.SMEM,
                           transforms=_swizzled(shape[1], jnp.bfloat16))
             for shape, index in blocks]
    return gpu.emit_pipeline_warp_specialized(
        step, grid=(tile.steps,), in_specs=specs, memory_registers=MEMORY_REGISTERS, wg_axis='wg',
        num_compute_wgs=2, max_concurrent_steps=tiles.stages, compute_context=finish)


def _step(
    tiles: Tiles, transposed: tuple[bool, bool], _: Any, lhs: Any, rhs: Any, total: Any
) -> Any:
    """total += this warpgroup's half of lhs @ rhs."""
    rows, columns = tiles.half
    wg = jax.lax.axis_index('wg')
    if tiles.by_rows:
        mine = pl.ds(wg * rows, rows)
        lhs = lhs.at[:, mine] if transposed[0] else lhs.at[mine]
    else:
        mine = pl.ds(wg * columns, columns)
        rhs = rhs.at[mine] if transposed[1] else rhs.at[:, mine]
    gpu.wgmma(total, lhs.transpose((1, 0)) if transposed[0] else lhs,
              rhs.transpose((1, 0)) if transposed[1] else rhs)
    gpu.wgmma_wait(0)
    return total


def _accumulate(tiles: Tiles, staged: Any, out: Any, steps: Callable[..., Any]) -> None:
    """Run the steps and write this warpgroup's half by way of two buffers in shared memory."""
    rows, columns = tiles.half
    high, wide = staged.shape[2:]
    wg = jax.lax.axis_index('wg')
    share = pl.ds(wg * rows, rows) if tiles.by_rows else pl.ds(wg * columns, columns)
    mine = out.at[share] if tiles.by_rows else out.at[:, share]

    # Public, and not re-exported by name.
    @partial(pl.run_scoped, total=gpu.ACC((rows, columns), jnp.float32))  # pyright: ignore[reportPrivateImportUsage]
    def _(total):
        steps(total)
        y = total[...].astype(out.dtype)
        gpu.wait_smem_to_gmem(0, wait_read_only=True)
        places = [(i, j) for i in range(0, rows, high) for j in range(0, columns, wide)]
        for turn, (i, j) in enumerate(places):
            gpu.wait_smem_to_gmem(1, wait_read_only=True)
            staged[wg, turn % 2] = y[i:i + high, j:j + wide]
            gpu.commit_smem()
            gpu.copy_smem_to_gmem(staged.at[wg, turn % 2], mine.at[i:i + high, j:j + wide])


def _in_bands(
    i: jax.Array, *, rows: int, columns: int, band: int
) -> tuple[jax.Array, jax.Array]:
    """Row and column of tile i: down a band of rows, column after column."""
    each = jnp.int32(band * columns)
    first = jax.lax.div(i, each) * band
    inside, high = jax.lax.rem(i, each), jnp.minimum(rows - first, band)
    return first + jax.lax.rem(inside, high), jax.lax.div(inside, high)


def _part(out: Any, row: jax.Array, column: jax.Array, tiles: Tiles) -> Any:
    """The tile of an output at this row and column of tiles."""
    return out.at[pl.ds(row * tiles.rows, tiles.rows), pl.ds(column * tiles.columns, tiles.columns)]


def _swizzled(columns: int, dtype: DTypeLike) -> tuple[Any, ...]:
    """The layout in shared memory of a block with so many columns."""
    bits = 8 * jnp.dtype(dtype).itemsize
    swizzle = gpu.find_swizzle(columns * bits)
    return (gpu.TilingTransform((8, 8 * swizzle // bits)), gpu.SwizzleTransform(swizzle))


def _nothing(*_: Any) -> None:
    return None
