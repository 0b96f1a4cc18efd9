"""Native kernels: the grouped matmul on CPU by a library of ours (`csrc/`), where it was built.

S rows sorted by expert, E experts, D and F widths. `moe-jax build-kernels` compiles the library and
tries it (`trial.try_native`); where it did not pass that trial, or is not there, another backend of
`table` is used.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from moe_jax.kernels import build, target

TARGETS = 'moe_jax_matmul', 'moe_jax_outer', 'moe_jax_outer_into'


@functools.lru_cache(maxsize=1)
def load() -> None:
    """Make the kernels known to XLA.

    FileNotFoundError: they were not built for this machine and this jax; OSError: they do not load.
    """
    library = ctypes.cdll.LoadLibrary(str(build.built()))
    for name in TARGETS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)),
                                    platform='cpu')


def load_tried() -> None:
    """Make the kernels known to XLA, if they passed their trial; FileNotFoundError: they did not.
    """
    build.tried()
    load()


def usable() -> bool:
    """Whether the program being traced may use the kernels: it is for CPU, and they passed their
    trial or MOE_JAX_GROUPED names them."""
    requested = target.requested()
    return target.platform() == 'cpu' and (
        requested == 'native' or (not requested and passed()))


@functools.lru_cache(maxsize=1)
def passed() -> bool:
    """Whether the library of this process passed its trial and is loaded."""
    try:
        load_tried()
    except OSError:
        return False
    return True


def fits(block: int, d: int, f: int, dtype: DTypeLike) -> bool:
    """Whether `matmul` takes rows of such widths: of bfloat16 pairs are multiplied."""
    return dtype == jnp.float32 or (dtype == jnp.bfloat16 and d % 2 == 0 and f % 2 == 0)


def matmul(lhs: jax.Array, rhs: jax.Array, sizes: jax.Array, *, transposed: bool) -> jax.Array:
    """y [S, F] with y[s] = lhs[s] @ rhs[e] for row s of lhs [S, D] in group e; rhs [E, D, F].

    lhs and rhs of one dtype; sizes int32 [E]; rows past the last group give zeros. transposed: rhs
    is [E, F, D].
    """
    shape = lhs.shape[0], rhs.shape[1 if transposed else 2]
    return _call(TARGETS[0], shape, lhs.dtype)(lhs, rhs, sizes, transposed=transposed)


def outer(lhs: jax.Array, dy: jax.Array, sizes: jax.Array, dtype: DTypeLike) -> jax.Array:
    """[E, D, F] with lhs[rows of e].T @ dy[rows of e] at e; lhs [S, D], dy [S, F]."""
    shape = sizes.shape[0], lhs.shape[1], dy.shape[1]
    half = lhs.dtype == jnp.bfloat16 and dtype == jnp.bfloat16  # of others the sums are float32
    summed = jnp.bfloat16 if half else jnp.float32
    return _call(TARGETS[1], shape, summed)(lhs, dy, sizes).astype(dtype)


def outer_into(
    total: jax.Array, lhs: jax.Array, dy: jax.Array, sizes: jax.Array, begins: jax.Array,
    row: jax.Array,
) -> jax.Array:
    """total [E, D, F] float32 with `outer` added, or in its place where begins [E]; in place.

    The first group begins at `row`.
    """
    call = _call(TARGETS[2], total.shape, total.dtype, input_output_aliases={0: 0})
    return call(total, lhs, dy, sizes, begins.astype(jnp.int32), row.astype(jnp.int32))


def _call(
    name: str, shape: tuple[int, ...], dtype: DTypeLike, **options: Any
) -> Callable[..., jax.Array]:
    """The function that calls one kernel of the library for an output of this shape."""
    load()
    return jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(shape, dtype), vmap_method='sequential',
                            **options)
