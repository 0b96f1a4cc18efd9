"""A function of (weights of one expert, rows) applied to rows sorted by expert, dropless.

S rows, D width, E experts. Rows sizes[0] belong to expert 0, the next sizes[1] to expert 1, ...;
rows after the last group are unused and come back as zeros.

On CPU this is a loop over experts with row blocks of dynamic count (`schedule`), because
XLA:CPU expands `lax.ragged_dot` to a masked dense product whose cost grows with E.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from moe_jax.base.tree import Tree
from moe_jax.base.varying import alike
from moe_jax.base.vjp import custom_vjp
from moe_jax.kernels.bits import as_bits, from_bits
from moe_jax.kernels.schedule import (
    Group,
    one_of,
    over_blocks,
    over_first,
    over_whole,
    padded,
    read,
    unpadded,
    write,
)

Expert = Callable[[Tree, jax.Array], jax.Array]
# (weights of one expert, row, size, rows that are the group's [size, 1], dy [size, D']) ->
# (gradients by the weights, by the rows)
Pull = Callable[[Tree, jax.Array, int, jax.Array, jax.Array], tuple[Tree, jax.Array]]
Saved = tuple[Tree, jax.Array, jax.Array]  # weights, rows, sizes


@custom_vjp(0)
def apply(function: Expert, weights: Tree, rows: jax.Array, sizes: jax.Array) -> jax.Array:
    """y [S, D'] with y[s] = function(weights[e], rows)[s], where row s lies in group e.

    weights: expert-major tree, E on axis 0 of every leaf; rows [S, D]; sizes int32 [E]. The
    backward pass evaluates each block again instead of keeping its hidden layer.
    """
    x, (count, dtype) = padded(rows), (rows.shape[0], rows.dtype)

    def expert(e, y):
        w = one_of(weights, e)

        def block(row, size, _, y):
            return write(y, function(w, read(x, row, size, dtype)), row, dtype)

        return over_blocks(Group.of(sizes, e), count, block, y)

    width = jax.eval_shape(function, jax.tree.map(lambda w: w[0], weights), rows[:1]).shape[-1]
    start = alike(jnp.zeros((x.shape[0], width), x.dtype), weights, rows, sizes)
    y = jax.lax.fori_loop(0, sizes.shape[0], expert, start)
    return unpadded(y, dtype, count, sizes.sum())


def sums(
    function: Callable[..., tuple[jax.Array, Tree]],
    merge: Callable[[Tree, Tree], Tree],
    weights: Tree,
    rows: jax.Array,
    gates: jax.Array,
    sizes: jax.Array,
    expert_of: jax.Array,
) -> tuple[jax.Array, Tree]:
    """The outputs of `apply`, with gates [S] beside the rows and sums over each group's rows.

    function(weights of one expert, rows [M, D], gates [M], valid bool [M]) -> (y [M, D'], tree of
    sums over the valid rows); `merge` joins the trees of two blocks, with zeros as its neutral
    element. Group r uses expert expert_of[r] [R]. Returns y [S, D'] and the tree, R on axis 0.
    No gradient is defined.
    """
    x, (count, dtype) = padded(rows), (rows.shape[0], rows.dtype)
    gates = jnp.pad(gates, (0, x.shape[0] - count))
    shapes = jax.eval_shape(function, jax.tree.map(lambda w: w[0], weights), rows[:1], gates[:1],
                            jnp.ones((1,), bool))
    inputs = weights, rows, gates, sizes, expert_of
    zeros = alike(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes[1]), inputs)

    def group(r, carry):
        y, totals = carry
        w = one_of(weights, expert_of[r])

        def block(row, size, valid, carry):
            y, total = carry
            part, more = function(w, read(x, row, size, dtype),
                                  jax.lax.dynamic_slice_in_dim(gates, row, size),
                                  jnp.arange(size) < valid)
            return write(y, part, row, dtype), merge(total, more)

        y, total = over_blocks(Group.of(sizes, r), count, block, (y, zeros))
        put = partial(jax.lax.dynamic_update_index_in_dim, index=r, axis=0)
        return y, jax.tree.map(lambda all_, one: put(all_, one), totals, total)

    y = jnp.zeros((x.shape[0], shapes[0].shape[-1]), x.dtype)
    totals = jax.tree.map(lambda a: jnp.zeros((sizes.shape[0], *a.shape), a.dtype), zeros)
    y, totals = jax.lax.fori_loop(0, sizes.shape[0], group, alike((y, totals), inputs))
    return unpadded(y, dtype, count, sizes.sum()), totals


def _forward(
    function: Expert, weights: Tree, rows: jax.Array, sizes: jax.Array
) -> tuple[jax.Array, Saved]:
    return apply(function, weights, rows, sizes), (weights, rows, sizes)


def _backward(
    function: Expert, saved: Saved, dy: jax.Array
) -> tuple[Tree, jax.Array, None]:
    return *gradients(function, *saved, dy), None


def gradients(
    function: Expert, weights: Tree, rows: jax.Array, sizes: jax.Array, dy: jax.Array
) -> tuple[Tree, jax.Array]:
    """Gradients by weights and rows of `apply`, given the gradient dy [S, D'] by y."""
    x = padded(rows)

    def pull(w, row, size, _, dy):
        return jax.vjp(function, w, read(x, row, size, rows.dtype))[1](dy)

    return pulled(pull, weights, weights, rows, sizes, dy)


def pulled(
    pull: Pull, weights: Tree, like: Tree, rows: jax.Array, sizes: jax.Array, dy: jax.Array
) -> tuple[Tree, jax.Array]:
    """Gradients by all weights and by rows, from those of blocks.

    dy is zero where a block reaches past its rows. like: arrays or shapes of the gradients by the
    weights, as a block's come too.
    """
    count, dtype, g = rows.shape[0], rows.dtype, padded(dy)

    def expert(e, carry):
        w, group = one_of(weights, e), Group.of(sizes, e)

        def block(row, size, valid, dx):
            mine, own = (jnp.arange(size) < valid)[:, None], read(g, row, size, dy.dtype)
            own = jnp.where(mine, own, jnp.zeros_like(own))
            dw, back = pull(w, row, size, mine, own)
            return dw, write(dx, back, row, dtype)

        def first(row, size, valid, carry):
            dw, dx = block(row, size, valid, carry[1])
            return _put(carry[0], dw, like, e), dx

        def more(row, size, valid, carry):
            dw, dx = block(row, size, valid, carry[1])
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), carry[0], dw), dx

        def rest(j, carry):
            # Of several blocks the sum is in float32; only the first block's is rounded before.
            some = group._replace(whole=group.whole - j)
            zeros = jax.tree.map(lambda a: jnp.zeros(a.shape[1:], jnp.float32), like)
            total, dx = over_whole(some, count, more, alike((zeros, carry[1])))
            before = one_of(_from_bits(carry[0], like), e)
            total = jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, before)
            return _put(carry[0], total, like, e), dx

        carry = over_first(group, count, first, carry)
        return jax.lax.fori_loop(0, jnp.minimum(group.whole, 1), rest, carry)

    start = jax.tree.map(lambda w: as_bits(jnp.zeros(w.shape, w.dtype)), like), padded(
        jnp.zeros_like(rows))
    start = alike(start, weights, rows, sizes, dy)
    dweights, dx = jax.lax.fori_loop(0, sizes.shape[0], expert, start)
    return _from_bits(dweights, like), unpadded(dx, dtype, count, sizes.sum())


def _put(tree: Tree, one: Tree, like: Tree, e: jax.Array) -> Tree:
    """A tree of bits with one expert's part at e, rounded to the dtypes of `like`."""
    return jax.tree.map(lambda all_, a, b: jax.lax.dynamic_update_index_in_dim(
        all_, as_bits(a.astype(b.dtype)), e, axis=0), tree, one, like)


def _from_bits(tree: Tree, like: Tree) -> Tree:
    return jax.tree.map(lambda a, b: from_bits(a, b.dtype), tree, like)


apply.defvjp(_forward, _backward)
