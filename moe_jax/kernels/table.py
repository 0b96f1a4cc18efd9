"""Ways to multiply rows that are sorted by expert: a table of implementations.

P rows of which each expert's begin at a multiple of a block, E experts, D and F widths. Tiles of a
kernel then have one expert each, and nothing is masked.

    mosaic   kernels for NVIDIA Hopper, 16 bits (`grouped_mosaic`)
    triton   kernels for NVIDIA GPUs (`grouped_triton`)
    ragged   `lax.ragged_dot`: native on TPU, where we could not run it; elsewhere XLA may expand it
             to a dense product whose cost grows with E
    blocks   batched products of blocks of rows (`grouped_blocks`): exact on every backend
    native   compiled code of ours for CPU (`grouped_native`), where it was built
    loop     a loop over experts (`grouped_loop`), for CPU
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moe_jax.kernels import blocks, loop

BLOCK = 128  # rows of a group are padded to a multiple of this
FEW, BLOCK_OF_FEW = 128, 64  # and to this where experts have fewer rows than that on average
HALF = (jnp.bfloat16, jnp.float16)


class Implementation(NamedTuple):
    """One way: groups begin at multiples of block(rows, experts); fits(block, D, F, dtype).

    matmul(lhs [P, D], rhs [E, D, F], sizes, block, turned=False) -> [P, F], or with rhs [E, F, D]
    if turned; outer(lhs [P, D], dy [P, F], sizes, block, dtype) -> [E, D, F]. Sums are float32.
    """

    block: Callable[[int, int], int]
    fits: Callable[[int, int, int, Any], bool]
    matmul: Callable[..., jax.Array]
    outer: Callable[..., jax.Array]


def implementation(name: str) -> Implementation:
    """One way by its name.

    ValueError: no such name; ImportError: it needs a package or a part of jax that is absent.
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(f'grouped matmul: no way {name!r}; there are {", ".join(IMPLEMENTATIONS)}')
    return IMPLEMENTATIONS[name]()


def _block(rows, experts):
    return BLOCK if rows >= FEW * experts else BLOCK_OF_FEW


def _one(rows, experts):
    return 1


def _any(block, d, f, dtype):
    return True


@lru_cache(maxsize=1)
def _mosaic():
    from moe_jax.kernels import mosaic as ways

    def fits(block, d, f, dtype):
        return (jnp.dtype(dtype) in HALF and d % ways.INNER == 0
                and None not in (ways.tiles_for(block, f), ways.tiles_for(d, f)))

    def outer(lhs, dy, sizes, block, dtype):
        return ways.outer(lhs, dy, sizes, dtype)

    return Implementation(_block, fits, ways.matmul, outer)


@lru_cache(maxsize=1)
def _triton():
    from moe_jax.kernels import triton as ways

    def fits(block, d, f, dtype):
        return ways.tiles_for(block, f, d, dtype) is not None

    return Implementation(_block, fits, ways.matmul, ways.outer)


def _ragged():
    plain, turned_, summed = _dims(1, 1, [0]), _dims(1, 2, [0]), _dims(0, 0, [])

    def matmul(lhs, rhs, sizes, block, *, turned):
        y = jax.lax.ragged_dot_general(lhs, rhs, sizes, turned_ if turned else plain,
                                       preferred_element_type=jnp.float32)
        return _used(y.astype(lhs.dtype), sizes)

    def outer(lhs, dy, sizes, block, dtype):
        return jax.lax.ragged_dot_general(lhs, dy, sizes, summed,
                                          preferred_element_type=jnp.float32).astype(dtype)

    return Implementation(_one, _any, matmul, outer)


def _native():
    from moe_jax.kernels import native as ways

    def matmul(lhs, rhs, sizes, block, *, turned):
        return ways.matmul(lhs, rhs, sizes, turned=turned)

    def outer(lhs, dy, sizes, block, dtype):
        return ways.outer(lhs, dy, sizes, dtype)

    return Implementation(_one, ways.fits, matmul, outer)


def _blocks():
    return Implementation(_block, _any, blocks.matmul, blocks.outer)


def _loop():
    def matmul(lhs, rhs, sizes, block, *, turned):
        return loop.apply(_turned_linear if turned else _linear, rhs, lhs, sizes)

    def outer(lhs, dy, sizes, block, dtype):
        zeros = jnp.zeros((sizes.shape[0], lhs.shape[1], dy.shape[1]), dtype)
        return loop.gradients(_linear, zeros, lhs, sizes, dy)[0]

    return Implementation(_one, _any, matmul, outer)


IMPLEMENTATIONS: dict[str, Callable[[], Implementation]] = {
    'mosaic': _mosaic, 'triton': _triton, 'ragged': _ragged, 'blocks': _blocks,
    'native': _native, 'loop': _loop,
}


def _dims(lhs, rhs, group):
    return jax.lax.RaggedDotDimensionNumbers((((lhs,), (rhs,)), ((), ())), [0], group)


def _used(y, sizes):
    """y with zeros past the last group."""
    return jnp.where((jnp.arange(y.shape[0]) < sizes.sum())[:, None], y, jnp.zeros_like(y))


def _linear(kernel, x):
    return jnp.dot(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32).astype(x.dtype)


def _turned_linear(kernel, x):
    return _linear(kernel.T, x)
