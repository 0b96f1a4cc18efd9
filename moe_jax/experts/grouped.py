"""A function of (weights of one expert, rows) applied to rows sorted by expert, dropless.

S rows, D width, E experts. Rows sizes[0] belong to expert 0, the next sizes[1] to expert 1, ...;
rows after the last group are unused and come back as zeros.

On CPU, and for functions that are no `Ffn`, this is the loop over experts of `grouped_loop`, whose
gradient is that of `grouped_ffn` for an `Ffn`; or, where compiled products are at hand, an `Ffn` is
evaluated by them, some rows at a time (`grouped_chunks`). On other backends it is evaluated for all
rows at once, by grouped matrix products.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax.experts import grouped_chunks
from moe_jax.experts import grouped_loop as grouped_ffn
from moe_jax.kernels import grouped_matmul, loop
from moe_jax.kernels.gather import Take, gather_rows, take
from moe_jax.kernels.loop import Expert
from moe_jax.kernels.loop import sums as grouped_sums
from moe_jax.kernels.trial import choose
from moe_jax.layers.ffn import Ffn

__all__ = ['Expert', 'aligned_apply', 'choose', 'grouped_apply', 'grouped_gradients',
           'grouped_sums', 'native', 'plan', 'taking']

IN_PARTS = 'native', 'loop'  # ways by which a layer is evaluated some rows at a time
Plan = tuple[str, int]  # a way of `grouped_ways`, and the block at whose multiples groups begin


def grouped_apply(function: Expert, weights: Any, rows: jax.Array, sizes: jax.Array) -> jax.Array:
    """y [S, D'] with y[s] = function(weights[e], rows)[s], where row s lies in group e.

    weights: expert-major tree, E on axis 0 of every leaf; rows [S, D]; sizes int32 [E].
    """
    how = plan(function, weights, rows)
    if how is None:
        return _apply(function, weights, rows)(function, weights, rows, sizes)
    to = grouped_matmul.align(sizes, rows.shape[0], how[1])
    rows = gather_rows(rows, to.source, to.place[:, None])
    y = aligned_apply(function, how, weights, rows, to.sizes)
    return gather_rows(y, to.place, to.source[:, None])


def grouped_gradients(
    function: Expert, weights: Any, rows: jax.Array, sizes: jax.Array, dy: jax.Array
) -> tuple[Any, jax.Array]:
    """Gradients by weights and rows of `grouped_apply`, given the gradient dy [S, D'] by y."""
    if _way(function, weights, rows)[0] == 'loop':
        return loop.gradients(function, weights, rows, sizes, dy)
    _, pull = jax.vjp(lambda w, rows: grouped_apply(function, w, rows, sizes), weights, rows)
    return pull(dy)


def plan(function: Expert, weights: Any, rows: jax.Array, count: int | None = None) -> Plan | None:
    """How to evaluate all rows at once, by shapes; None: a part after the other.

    count: S, where rows [N, D] are not yet chosen.
    """
    how = _way(function, weights, rows, count)
    return None if how[0] in IN_PARTS else how


def native(function: Expert, weights: Any, rows: jax.Array) -> bool:
    """Whether compiled products evaluate it (`grouped_chunks`)."""
    return _way(function, weights, rows)[0] == 'native'


def _apply(function, weights, rows):
    """How rows are evaluated a part after the other."""
    if not isinstance(function, Ffn):
        return loop.apply
    return grouped_chunks.apply if native(function, weights, rows) else grouped_ffn.apply


def _way(function, weights, rows, count=None):
    ways = choose()
    if ways == ('loop',) or not isinstance(function, Ffn):
        return 'loop', 1
    experts, f, d = weights['down'].shape
    return grouped_matmul.pick(ways, rows.shape[0] if count is None else count, experts, d, f,
                               rows.dtype)


def taking(x: jax.Array) -> Take:
    """How rows like those of x [M, D] are best copied by index to places of the plan."""
    if 'triton' not in choose():
        return take
    from moe_jax.kernels import triton

    return triton.take if x.shape[1] % triton.LEAST == 0 else take


def aligned_apply(
    function: Ffn, how: Plan, weights: Any, rows: jax.Array, sizes: jax.Array
) -> jax.Array:
    """As `grouped_apply`, for rows [P, D] whose groups begin at multiples of the plan's block.

    sizes int32 [E], multiples of the block. Of places without a row the output means nothing.
    """
    way, block = how
    ends = jnp.cumsum(sizes // block)
    expert = jnp.searchsorted(ends, jnp.arange(rows.shape[0] // block, dtype=jnp.int32),
                              side='right').astype(jnp.int32)
    return function(weights, rows, linear=partial(_linear, way, block, sizes, expert))


def _linear(way, block, sizes, expert, x, kernel, bias=None):
    """As `ops.linear`, with kernel [E, D, F] and bias [E, F]; expert: of each block of rows."""
    y = grouped_matmul.product(way, block, x, kernel, sizes)
    if bias is None:
        return y
    own = bias.astype(jnp.float32).at[expert].get(mode='fill', fill_value=0)
    y32 = y.astype(jnp.float32).reshape(-1, block, y.shape[1]) + own[:, None]
    return y32.reshape(y.shape).astype(y.dtype)
