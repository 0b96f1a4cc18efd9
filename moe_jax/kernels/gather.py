"""Reading rows by index, with a gradient that reads rows by index too."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from moe_jax.base.vjp import custom_vjp

Take = Callable[[jax.Array, jax.Array], jax.Array]


def take(x: jax.Array, index: jax.Array) -> jax.Array:
    """x[index], with zeros where index is out of range; x [M, D], index [S] -> [S, D]."""
    return x.at[index].get(mode='fill', fill_value=0)


@custom_vjp(3, 4)
def gather_rows(
    x: jax.Array, index: jax.Array, inverse: jax.Array, forth: Take = take, back: Take = take
) -> jax.Array:
    """x[index] with zeros where index is out of range; `inverse` makes the gradient a gather.

    x [M, D], index [S], inverse [M, J]: the places of the output that read row m (out of range
    where there are fewer than J) -> [S, D]. A scatter-add in the backward pass would be serial on
    CPU. forth, back: how rows are taken, and how in the gradient where J is 1.
    """
    del inverse, back
    return forth(x, index)


def _forward(
    x: jax.Array, index: jax.Array, inverse: jax.Array, forth: Take, back: Take
) -> tuple[jax.Array, jax.Array]:
    return gather_rows(x, index, inverse, forth, back), inverse


def _backward(
    forth: Take, back: Take, inverse: jax.Array, dy: jax.Array
) -> tuple[jax.Array, None, None]:
    if inverse.shape[1] == 1:
        return back(dy, inverse[:, 0]), None, None
    return take(dy, inverse).astype(jnp.float32).sum(axis=1).astype(dy.dtype), None, None


gather_rows.defvjp(_forward, _backward)
