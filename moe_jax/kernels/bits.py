"""16-bit floats as integers of the same bits, for what reads or writes parts of an array.

XLA:CPU computes in float32 what reads or writes part of a 16-bit float array, which it first casts
as a whole. Parts of the same bits as integers are copied as they are.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def as_bits(x: jax.Array) -> jax.Array:
    """The bits of 16-bit floats as integers; any other array itself."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if is_half(x.dtype) else x


def from_bits(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The array of this dtype that `as_bits` was given."""
    return jax.lax.bitcast_convert_type(x, dtype) if is_half(dtype) else x


def is_half(dtype: DTypeLike) -> bool:
    """Whether a dtype is a 16-bit float."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize == 2
