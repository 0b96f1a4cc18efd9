"""The backends of the grouped matmul: products of rows that are sorted by expert.

P rows, those of each expert beginning at a multiple of a block, E experts, D and F widths. Tiles of
a kernel then have one expert each, and nothing is masked.

    mosaic   kernels for NVIDIA Hopper, 16 bits (`mosaic`)
    triton   kernels for NVIDIA GPUs (`triton`)
    ragged   `lax.ragged_dot`: native on TPU, where we could not run it; elsewhere XLA may expand it
             to a dense product whose cost grows with E
    blocks   batched products of blocks of rows (`blocks`): exact on every platform
    native   a library of ours for CPU (`native`), where it was built
    loop     a loop over experts (`loop`), for CPU
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from moe_jax.kernels import blocks, loop
from moe_jax.kernels.gather import Take, take

BLOCK = 128  # rows of a group are padded to a multiple of this
FEW, BLOCK_OF_FEW = 128, 64  # and to this where experts have fewer rows than that on average
HALF = (jnp.bfloat16, jnp.float16)


class Backend(NamedTuple):
    """One implementation, whose sums are float32.

    block(rows, experts): the block at whose multiples groups begin.
    fits(block, D, F, dtype): whether it takes such factors.
    matmul(lhs [P, D], rhs [E, D, F], sizes, block, transposed=False) -> [P, F]; if transposed, rhs
    is [E, F, D].
    outer(lhs [P, D], dy [P, F], sizes, block, dtype) -> [E, D, F].
    """

    block: Callable[[int, int], int]
    fits: Callable[[int, int, int, DTypeLike], bool]
    matmul: Callable[..., jax.Array]
    outer: Callable[..., jax.Array]


class Choice(NamedTuple):
    """The backend of one grouped matmul, or of all those of a layer (`trial.choose`)."""

    name: str  # of the backend
    block: int = 1  # at whose multiples groups begin
    take: Take = take  # copies rows by index to and from there


def backend(name: str) -> Backend:
    """The backend of this name.

    ValueError: there is none; ImportError: it needs a package or a part of jax that is absent.
    """
    if name not in BACKENDS:
        raise ValueError(f'grouped matmul: no backend {name!r}; there are {", ".join(BACKENDS)}')
    return BACKENDS[name]()


def _block(rows: int, experts: int) -> int:
    return BLOCK if rows >= FEW * experts else BLOCK_OF_FEW


def _one(rows: int, experts: int) -> int:
    return 1


def _any(block: int, d: int, f: int, dtype: DTypeLike) -> bool:
    return True


@lru_cache(maxsize=1)
def _mosaic() -> Backend:
    from moe_jax.kernels import mosaic

    def fits(block, d, f, dtype):
        return (jnp.dtype(dtype) in HALF and d % mosaic.INNER == 0
                and None not in (mosaic.tiles_for(block, f), mosaic.tiles_for(d, f)))

    def outer(lhs, dy, sizes, block, dtype):
        return mosaic.outer(lhs, dy, sizes, dtype)

    return Backend(_block, fits, mosaic.matmul, outer)


@lru_cache(maxsize=1)
def _triton() -> Backend:
    from moe_jax.kernels import triton

    def fits(block, d, f, dtype):
        return triton.tiles_for(block, f, d, dtype) is not None

    return Backend(_block, fits, triton.matmul, triton.outer)


def _ragged() -> Backend:
    plain, swapped, summed = _dims(1, 1, [0]), _dims(1, 2, [0]), _dims(0, 0, [])

    def matmul(lhs, rhs, sizes, block, *, transposed):
        y = jax.lax.ragged_dot_general(lhs, rhs, sizes, swapped if transposed else plain,
                                       preferred_element_type=jnp.float32)
        return _used(y.astype(lhs.dtype), sizes)

    def outer(lhs, dy, sizes, block, dtype):
        return jax.lax.ragged_dot_general(lhs, dy, sizes, summed,
                                          preferred_element_type=jnp.float32).astype(dtype)

    return Backend(_one, _any, matmul, outer)


def _native() -> Backend:
    from moe_jax.kernels import native

    def matmul(lhs, rhs, sizes, block, *, transposed):
        return native.matmul(lhs, rhs, sizes, transposed=transposed)

    def outer(lhs, dy, sizes, block, dtype):
        return native.outer(lhs, dy, sizes, dtype)

    return Backend(_one, native.fits, matmul, outer)


def _blocks() -> Backend:
    return Backend(_block, _any, blocks.matmul, blocks.outer)


def _loop() -> Backend:
    def matmul(lhs, rhs, sizes, block, *, transposed):
        return loop.apply(_transposed_linear if transposed else _linear, rhs, lhs, sizes)

    def outer(lhs, dy, sizes, block, dtype):
        zeros = jnp.zeros((sizes.shape[0], lhs.shape[1], dy.shape[1]), dtype)
        return loop.gradients(_linear, zeros, lhs, sizes, dy)[0]

    return Backend(_one, _any, matmul, outer)


BACKENDS: dict[str, Callable[[], Backend]] = {
    'mosaic': _mosaic, 'triton': _triton, 'ragged': _ragged, 'blocks': _blocks,
    'native': _native, 'loop': _loop,
}


def _dims(lhs: int, rhs: int, group: list[int]) -> jax.lax.RaggedDotDimensionNumbers:
    """Products summed over axis `lhs` of the first and `rhs` of the second factor."""
    return jax.lax.RaggedDotDimensionNumbers((((lhs,), (rhs,)), ((), ())), [0], group)


def _used(y: jax.Array, sizes: jax.Array) -> jax.Array:
    """y [P, F] with zeros past the last group."""
    return jnp.where((jnp.arange(y.shape[0]) < sizes.sum())[:, None], y, jnp.zeros_like(y))


def _linear(kernel: jax.Array, x: jax.Array) -> jax.Array:
    """x [M, D] @ kernel [D, F]."""
    return jnp.dot(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32).astype(x.dtype)


def _transposed_linear(kernel: jax.Array, x: jax.Array) -> jax.Array:
    """x [M, D] @ kernel [F, D]^T."""
    return _linear(kernel.T, x)
