"""A function of (weights of one expert, rows) applied to rows sorted by expert, dropless.

S rows, D width, E experts. Rows sizes[0] belong to expert 0, the next sizes[1] to expert 1, ...;
rows after the last group are unused and come back as zeros.

On CPU this is a loop over experts with row blocks of dynamic count, because XLA:CPU expands
`lax.ragged_dot` to a masked dense product whose cost grows with E.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

BLOCKS = (128, 16)  # rows per matrix product: whole blocks first, then the rest in small ones
Expert = Callable[[Any, jax.Array], jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def apply(function: Expert, weights: Any, rows: jax.Array, sizes: jax.Array) -> jax.Array:
    """y [S, D'] with y[s] = function(weights[e], rows)[s], where row s lies in group e.

    weights: expert-major tree, E on axis 0 of every leaf; rows [S, D]; sizes int32 [E]. The
    backward pass evaluates each block again instead of keeping its hidden layer.
    """
    padded = _pad(rows)
    width = jax.eval_shape(function, _one(weights, 0), padded[:1]).shape[-1]

    def expert(e, y):
        w, first = _one(weights, e), _start(sizes, e)

        def block(row, size, y):
            return _write(y, function(w, _read(padded, row, size)), row)

        return _over_blocks(first, sizes[e], block, y)

    y = jnp.zeros((padded.shape[0], width), rows.dtype)
    y = jax.lax.fori_loop(0, sizes.shape[0], expert, y)[: rows.shape[0]]
    used = jnp.arange(rows.shape[0]) < sizes.sum()
    return jnp.where(used[:, None], y, jnp.zeros_like(y))


def sums(
    function: Callable[..., tuple[jax.Array, Any]],
    merge: Callable[[Any, Any], Any],
    weights: Any,
    rows: jax.Array,
    gates: jax.Array,
    sizes: jax.Array,
    expert_of: jax.Array,
) -> tuple[jax.Array, Any]:
    """As `apply`, with gates [S] beside the rows and sums over each group's rows.

    function(weights of one expert, rows [M, D], gates [M], valid bool [M]) -> (y [M, D'], tree of
    sums over the valid rows); `merge` joins the trees of two blocks, with zeros as its neutral
    element. Group r uses expert expert_of[r] [R]. Returns y [S, D'] and the tree, R on axis 0.
    No gradient is defined.
    """
    padded, gates = _pad(rows), jnp.pad(gates, (0, BLOCKS[0]))
    shapes = jax.eval_shape(function, _one(weights, 0), padded[:1], gates[:1],
                            jnp.ones((1,), bool))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes[1])

    def group(r, carry):
        y, found = carry
        w, first = _one(weights, expert_of[r]), _start(sizes, r)
        last = first + sizes[r]

        def block(row, size, carry):
            y, seen = carry
            valid = row + jnp.arange(size) < last
            part, sums = function(w, _read(padded, row, size), _read(gates, row, size), valid)
            return _write(y, part, row), merge(seen, sums)

        y, seen = _over_blocks(first, sizes[r], block, (y, zeros))
        put = partial(jax.lax.dynamic_update_index_in_dim, index=r, axis=0)
        return y, jax.tree.map(lambda all_, one: put(all_, one), found, seen)

    y = jnp.zeros((padded.shape[0], shapes[0].shape[-1]), rows.dtype)
    found = jax.tree.map(lambda a: jnp.zeros((sizes.shape[0], *a.shape), a.dtype), zeros)
    y, found = jax.lax.fori_loop(0, sizes.shape[0], group, (y, found))
    used = (jnp.arange(rows.shape[0]) < sizes.sum())[:, None]
    return jnp.where(used, y[: rows.shape[0]], 0), found


def _forward(function, weights, rows, sizes):
    return apply(function, weights, rows, sizes), (weights, rows, sizes)


def _backward(function, saved, dy):
    return *gradients(function, *saved, dy), None


def gradients(
    function: Expert, weights: Any, rows: jax.Array, sizes: jax.Array, dy: jax.Array
) -> tuple[Any, jax.Array]:
    """Gradients by weights and rows of `apply`, given the gradient dy [S, D'] by y."""
    padded, dy = _pad(rows), _pad(dy)

    def expert(e, carry):
        dx, dweights = carry
        w, first = _one(weights, e), _start(sizes, e)
        last = first + sizes[e]

        def block(row, size, carry):
            dx, dw = carry
            _, pull = jax.vjp(function, w, _read(padded, row, size))
            mine = (row + jnp.arange(size) < last)[:, None]
            grad = _read(dy, row, size)
            dw_block, dx_block = pull(jnp.where(mine, grad, jnp.zeros_like(grad)))
            return _write(dx, dx_block, row), jax.tree.map(jnp.add, dw, dw_block)

        zero = jax.tree.map(jnp.zeros_like, w)
        dx, dw = _over_blocks(first, sizes[e], block, (dx, zero))
        put = partial(jax.lax.dynamic_update_index_in_dim, index=e, axis=0)
        return dx, jax.tree.map(lambda all_, one: put(all_, one), dweights, dw)

    start = (jnp.zeros_like(padded), jax.tree.map(jnp.zeros_like, weights))
    dx, dweights = jax.lax.fori_loop(0, sizes.shape[0], expert, start)
    dx = dx[: rows.shape[0]]
    used = jnp.arange(rows.shape[0]) < sizes.sum()
    return dweights, jnp.where(used[:, None], dx, jnp.zeros_like(dx))


apply.defvjp(_forward, _backward)


def _over_blocks(first, count, block, carry):
    """Run block(row, size, carry) over rows first .. first+count, big blocks first.

    The last block may reach past the group's end: what it writes there is overwritten by the next
    expert, which is why experts must run in order and buffers carry a block of padding.
    """
    big, small = BLOCKS
    whole = count // big
    carry = jax.lax.fori_loop(0, whole, lambda i, c: block(first + i * big, big, c), carry)
    rest, begin = count - whole * big, first + whole * big
    steps = (rest + small - 1) // small
    return jax.lax.fori_loop(0, steps, lambda i, c: block(begin + i * small, small, c), carry)


def _pad(rows):
    return jnp.pad(rows, ((0, BLOCKS[0]), (0, 0)))


def _one(weights, e):
    """One expert's weights.

    XLA:CPU casts what an operation reads in bfloat16 to float32. Without the barrier, which ties
    the weights to the loop's index, it would do so once, ahead of the loop and for the whole stack
    of experts: three times the memory.
    """
    weights, e = jax.lax.optimization_barrier((weights, e))
    return jax.tree.map(
        lambda w: jax.lax.dynamic_index_in_dim(w, e, axis=0, keepdims=False), weights
    )


def _start(sizes, e):
    return jnp.where(jnp.arange(sizes.shape[0]) < e, sizes, 0).sum()


def _read(rows, row, size):
    return jax.lax.dynamic_slice_in_dim(rows, row, size, axis=0)


def _write(rows, block, row):
    return jax.lax.dynamic_update_slice_in_dim(rows, block.astype(rows.dtype), row, axis=0)
