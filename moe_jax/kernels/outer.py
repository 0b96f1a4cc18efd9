"""Gradients by kernels: outer products summed over rows."""

import jax
import jax.numpy as jnp

from moe_jax.base import sharding
from moe_jax.kernels import native


def summed_outer(a: jax.Array, b: jax.Array) -> jax.Array:
    """a [N, D], b [N, F] of one dtype -> sum over n of a[n, d] b[n, f], [D, F] float32."""
    if a.dtype == jnp.bfloat16 and sharding.current() is None and native.usable():
        # XLA:CPU takes 16-bit floats for float32 where it sums over the rows of both factors.
        return native.outer(a, b, jnp.full((1,), len(a), jnp.int32), jnp.float32)[0]
    return jax.lax.dot_general(a, b, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
