"""Blocks of rows for a loop over experts, where their number is known only at run time.

S rows sorted by expert. A group's first block takes the rows beyond whole blocks of `WHOLE`, in
the smallest of a few sizes that holds it: products of few rows are slow, because each packs its
factors anew, and every size is compiled. A block may reach past its rows: what it writes there is
overwritten by the next block, which is why they run in order and buffers have a block of padding.
Rows are read and written as bits (`bits`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from moe_jax.base.tree import Tree
from moe_jax.kernels.bits import as_bits, from_bits

WHOLE = 256
FIRST = (*range(16, 129, 16), 192, WHOLE)
FIRST_OF_FEW = (16, 64, WHOLE)  # where all groups together have no more rows: compiling counts

# (row, size, count, carry) -> carry: rows row .. row+size, of which `count` are the group's.
Block = Callable[[jax.Array, int, jax.Array, Any], Any]


class Group(NamedTuple):
    """The rows of one expert."""

    start: jax.Array  # the first of them
    first: jax.Array  # rows in the first block
    whole: jax.Array  # whole blocks after it

    @classmethod
    def of(cls, sizes: jax.Array, e: jax.Array) -> 'Group':
        """Group e of sizes int32 [E]."""
        count = sizes[e]
        first = jnp.where(count > 0, (count - 1) % WHOLE + 1, 0)
        start = jnp.where(jnp.arange(sizes.shape[0]) < e, sizes, 0).sum()
        return cls(start, first, (count - first) // WHOLE)


def over_first(group: Group, rows: int, block: Block, carry: Any) -> Any:
    """Run the group's first block, of S = `rows` rows in all; nothing where the group is empty."""
    sizes = first_sizes(rows)
    which = jnp.searchsorted(jnp.asarray(sizes, jnp.int32), group.first)
    for i, size in enumerate(sizes):
        times = ((which == i) & (group.first > 0)).astype(jnp.int32)

        # The row depends on j or else XLA takes the body out of the loop and always runs it.
        def once(j, carry, size=size):
            return block(group.start + j * size, size, group.first, carry)

        carry = jax.lax.fori_loop(0, times, once, carry)
    return carry


def over_whole(group: Group, rows: int, block: Block, carry: Any) -> Any:
    """Run the group's whole blocks."""
    if rows <= WHOLE:
        return carry  # there are none
    begin = group.start + group.first

    def one(i, carry):
        return block(begin + i * WHOLE, WHOLE, jnp.int32(WHOLE), carry)

    return jax.lax.fori_loop(0, group.whole, one, carry)


def over_blocks(group: Group, rows: int, block: Block, carry: Any) -> Any:
    """Run all blocks of a group in order."""
    return over_whole(group, rows, block, over_first(group, rows, block, carry))


def first_sizes(rows: int) -> tuple[int, ...]:
    """Sizes of first blocks that groups of `rows` rows in all need."""
    sizes = FIRST if rows > WHOLE else FIRST_OF_FEW
    enough = next((size for size in sizes if size >= rows), WHOLE)
    return tuple(size for size in sizes if size <= enough)


def padded(rows: jax.Array) -> jax.Array:
    """The bits of rows [S, D] with room for the last block to reach past them."""
    return jnp.pad(as_bits(rows), ((0, first_sizes(rows.shape[0])[-1]), (0, 0)))


def unpadded(rows: jax.Array, dtype: DTypeLike, count: int, used: jax.Array) -> jax.Array:
    """The first `count` of rows that blocks wrote as bits, zeros from row `used` on."""
    y = from_bits(rows[:count], dtype)
    return jnp.where((jnp.arange(count) < used)[:, None], y, jnp.zeros_like(y))


def read(rows: jax.Array, row: jax.Array, size: int, dtype: DTypeLike) -> jax.Array:
    """`size` rows of `padded`, from `row` on."""
    return from_bits(jax.lax.dynamic_slice_in_dim(rows, row, size, axis=0), dtype)


def write(rows: jax.Array, block: jax.Array, row: jax.Array, dtype: DTypeLike) -> jax.Array:
    """rows, as bits of dtype, with a block from `row` on."""
    return jax.lax.dynamic_update_slice_in_dim(rows, as_bits(block.astype(dtype)), row, axis=0)


def one_of(tree: Tree, e: jax.Array) -> Tree:
    """Expert e of an expert-major tree."""
    return jax.tree.map(lambda w: from_bits(
        jax.lax.dynamic_index_in_dim(as_bits(w), e, axis=0, keepdims=False), w.dtype), tree)
