"""A function of (weights of one expert, rows) applied to rows sorted by expert, dropless.

S rows, D width, E experts. Rows sizes[0] belong to expert 0, the next sizes[1] to expert 1, ...;
rows after the last group are unused and come back as zeros.

How they are evaluated is chosen once for a layer (`choose`). By the backend `loop`, and where the
function is no `Ffn`, it is a loop over experts, whose gradient is that of `grouped_loop` for an
`Ffn`; by `native`, some rows at a time (`grouped_chunks`); by any other, all rows at once.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from moe_jax.base.tree import Tree
from moe_jax.experts import grouped_chunks, grouped_loop
from moe_jax.kernels import grouped_matmul, loop, trial
from moe_jax.kernels.gather import gather_rows
from moe_jax.kernels.loop import Expert
from moe_jax.kernels.table import Choice
from moe_jax.layers.ffn import Ffn, Weights

LOOP = Choice('loop')
# Backends by which an `Ffn` is evaluated a part of the rows after the other.
IN_PARTS = {'native': grouped_chunks.apply, 'loop': grouped_loop.apply}


def choose(function: Expert, weights: Tree, rows: int, dtype: DTypeLike) -> Choice:
    """The backend that evaluates so many sorted rows of a dtype by these weights, E on axis 0."""
    if not isinstance(function, Ffn):
        return LOOP
    experts, f, d = weights['down'].shape
    return trial.choose(rows, experts, d, f, dtype)


def at_once(choice: Choice) -> bool:
    """Whether all rows are evaluated at once (`aligned_apply`)."""
    return choice.name not in IN_PARTS


def grouped_apply(
    function: Expert, choice: Choice, weights: Tree, rows: jax.Array, sizes: jax.Array
) -> jax.Array:
    """y [S, D'] with y[s] = function(weights[e], rows)[s], where row s lies in group e.

    weights: expert-major tree, E on axis 0 of every leaf; rows [S, D]; sizes int32 [E].
    """
    if not isinstance(function, Ffn):
        return loop.apply(function, weights, rows, sizes)
    if not at_once(choice):
        return IN_PARTS[choice.name](function, weights, rows, sizes)
    to = grouped_matmul.align(sizes, rows.shape[0], choice.block)
    rows = gather_rows(rows, to.source, to.place[:, None])
    y = aligned_apply(function, choice, weights, rows, to.sizes)
    return gather_rows(y, to.place, to.source[:, None])


def grouped_gradients(
    function: Expert, choice: Choice, weights: Tree, rows: jax.Array, sizes: jax.Array,
    dy: jax.Array,
) -> tuple[Tree, jax.Array]:
    """Gradients by weights and rows of `grouped_apply`, given the gradient dy [S, D'] by y."""
    if choice.name == 'loop':
        return loop.gradients(function, weights, rows, sizes, dy)
    _, pull = jax.vjp(lambda w, rows: grouped_apply(function, choice, w, rows, sizes),
                      weights, rows)
    return pull(dy)


def aligned_apply(
    function: Ffn, choice: Choice, weights: Weights, rows: jax.Array, sizes: jax.Array
) -> jax.Array:
    """As `grouped_apply`, for rows [P, D] whose groups begin at multiples of the choice's block.

    sizes int32 [E], multiples of the block. Of places without a row the output means nothing.
    """
    ends = jnp.cumsum(sizes // choice.block)
    block = jnp.arange(rows.shape[0] // choice.block, dtype=jnp.int32)
    expert = jnp.searchsorted(ends, block, side='right').astype(jnp.int32)
    return function(weights, rows, linear=partial(_linear, choice, sizes, expert))


def _linear(
    choice: Choice, sizes: jax.Array, expert: jax.Array, x: jax.Array, kernel: jax.Array,
    bias: jax.Array | None = None,
) -> jax.Array:
    """As `linear` of `kernels`, with kernel [E, D, F] and bias [E, F]; expert of each block."""
    y = grouped_matmul.product(choice, x, kernel, sizes)
    if bias is None:
        return y
    own = bias.astype(jnp.float32).at[expert].get(mode='fill', fill_value=0)
    y32 = y.astype(jnp.float32).reshape(-1, choice.block, y.shape[1]) + own[:, None]
    return y32.reshape(y.shape).astype(y.dtype)
