"""Products of rows with one matrix, and their gradients."""

import jax
import jax.numpy as jnp

from moe_jax.base.vjp import custom_vjp
from moe_jax.kernels.outer import summed_outer


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """x [..., D] @ kernel [D, F] + bias [F], summed in float32, in x's dtype."""
    y = _product(x, kernel.astype(x.dtype))
    return (y if bias is None else y + like(bias, y)).astype(x.dtype)


@custom_vjp()
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., D] @ kernel [D, F], float32."""
    return jnp.dot(x, kernel, preferred_element_type=jnp.float32)


def _product_forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x, kernel), (x, kernel)


def _product_backward(
    saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Both gradients, by products of the dtype of x: in `linear` dy holds no finer numbers.

    The kernel's comes in the kernel's own order, from matrices. Left to itself jax turns it around,
    and XLA:CPU then transposes the activations, one number at a time.
    """
    x, kernel = saved
    dy = dy.astype(x.dtype)
    dx = jax.lax.dot_general(dy, kernel, (((dy.ndim - 1,), (1,)), ((), ())),
                             preferred_element_type=jnp.float32)
    dkernel = summed_outer(*(a.reshape(-1, a.shape[-1]) for a in (x, dy)))
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


_product.defvjp(_product_forward, _product_backward)


def like(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A [D] vector as float32 with x's rank, so that broadcasting is explicit."""
    return vector.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + vector.shape)
