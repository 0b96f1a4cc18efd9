"""The grouped matmul as batched products: exact on every platform, dropless, without a kernel.

P rows, those of each expert beginning at a multiple of `block`, E experts, D and F widths. Every
block of rows is multiplied with a copy of its expert's matrix; CHUNK blocks at a time, so that few
copies exist at once.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from moe_jax.base.varying import alike

CHUNK = 32


def matmul(
    lhs: jax.Array, rhs: jax.Array, sizes: jax.Array, block: int, *, transposed: bool
) -> jax.Array:
    """y [P, F] with y[p] = lhs[p] @ rhs[e], row p of lhs [P, D] in group e; rhs [E, D, F].

    sizes int32 [E], multiples of block; rows past the last group give zeros. transposed: rhs is
    [E, F, D].
    """
    axis = 1 if transposed else 0

    def one(part):
        rows, expert = part
        matrix = rhs.at[expert].get(mode='fill', fill_value=0)
        return jax.lax.dot_general(rows, matrix, (((1,), (axis,)), ((), ())),
                                   preferred_element_type=jnp.float32).astype(lhs.dtype)

    blocks = (lhs.reshape(-1, block, lhs.shape[1]), _experts(sizes, block, lhs.shape[0]))
    return jax.lax.map(one, blocks, batch_size=CHUNK).reshape(lhs.shape[0], -1)


def outer(
    lhs: jax.Array, dy: jax.Array, sizes: jax.Array, block: int, dtype: DTypeLike
) -> jax.Array:
    """[E, D, F] with lhs[rows of e].T @ dy[rows of e] at e; lhs [P, D], dy [P, F], in dtype.

    sizes int32 [E], multiples of block.
    """
    experts, blocks = sizes.shape[0], lhs.shape[0] // block
    padding = -blocks % CHUNK
    expert = jnp.pad(_experts(sizes, block, lhs.shape[0]), (0, padding), constant_values=experts)
    lhs, dy = (jnp.pad(a.reshape(blocks, block, -1), ((0, padding), (0, 0), (0, 0)))
               .reshape(-1, CHUNK, block, a.shape[1]) for a in (lhs, dy))

    def chunk(total, part):
        lhs, dy, expert = part
        each = jnp.einsum('cbd,cbf->cdf', lhs, dy, preferred_element_type=jnp.float32)
        return total.at[expert].add(each, mode='drop'), None

    start = alike(jnp.zeros((experts, lhs.shape[-1], dy.shape[-1]), jnp.float32), lhs, dy, sizes)
    return jax.lax.scan(chunk, start, (lhs, dy, expert.reshape(-1, CHUNK)))[0].astype(dtype)


def _experts(sizes: jax.Array, block: int, rows: int) -> jax.Array:
    """The expert of each block of P = `rows` rows, int32 [P / block]; E where there is none."""
    return jnp.searchsorted(jnp.cumsum(sizes // block), jnp.arange(rows // block, dtype=jnp.int32),
                            side='right').astype(jnp.int32)
