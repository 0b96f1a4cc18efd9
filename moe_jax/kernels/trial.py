"""The choice of a backend of the grouped matmul, once for each call, and the trials behind it.

On each platform backends are tried once in a process, in a small case, the most specialized first;
those that work there are candidates, and a call takes the first that fits its shapes. Native
kernels are tried when they are built. MOE_JAX_GROUPED names one backend to use instead.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from moe_jax.kernels import build, gather, native, target
from moe_jax.kernels.gather import Take
from moe_jax.kernels.table import BACKENDS, Backend, Choice, backend
from moe_jax.kernels.target import VARIABLE

# By platform, the most specialized first; a trial throws out what does not run or is dense. The
# last is exact everywhere.
ORDER = MappingProxyType({
    'cpu': ('native', 'loop'), 'tpu': ('ragged', 'blocks'),
    'gpu': ('mosaic', 'triton', 'ragged', 'blocks'),
})
# Where a program is compiled for a platform that this process has no device of, nothing can be
# tried: what is known of its present machines. Compiled for TPU, `ragged` is dense in its gradient
# by weights, as it is on GPU; `mosaic` is for Hopper, for other cards set MOE_JAX_GROUPED=triton.
UNTRIED = MappingProxyType({
    'cpu': ('loop',), 'tpu': ('blocks',), 'gpu': ('mosaic', 'triton', 'blocks'),
})
EXACT = ('blocks',)  # on a platform that is in no table
DENSE = 2.0  # FLOPs over those of the rows' own experts, above which a product counts as dense
SIZES, WIDTHS = (128, 0, 256, 128, 64, 128, 0, 128), (128, 256)  # of a trial; some rows unused
SPARE = 128
# Relative, against float64, of factors of a dtype.
TOLERANCE = MappingProxyType({'bfloat16': 2e-2, 'float32': 1e-5})

log = logging.getLogger(__name__)


def choose(
    rows: int, experts: int, d: int, f: int, dtype: DTypeLike,
    names: tuple[str, ...] | None = None,
) -> Choice:
    """The backend for lhs [rows, D] @ rhs [E, D, F] and its gradients.

    names: the backends to choose among, by default `candidates`. ValueError: none of them takes
    such factors.
    """
    names = candidates() if names is None else names
    for name in names:
        tried = backend(name)
        block = tried.block(rows, experts)
        if tried.fits(block, d, f, dtype) and tried.fits(block, f, d, dtype):
            return Choice(name, block, _take(names, d))
    raise ValueError(f'grouped matmul: [{rows}, {d}] @ [{experts}, {d}, {f}] in {dtype} does not '
                     f'fit {" or ".join(names)}; {VARIABLE}=blocks takes any')


def candidates() -> tuple[str, ...]:
    """The backends that work on the target, in the order in which they are chosen.

    ValueError: MOE_JAX_GROUPED names none.
    """
    return _candidates(target.platform(), target.requested())


@lru_cache(maxsize=16)
def _candidates(platform: str, requested: str) -> tuple[str, ...]:
    if requested and requested not in BACKENDS:
        raise ValueError(f'{VARIABLE}={requested}: no such backend of the grouped matmul; use one '
                         f'of {", ".join(BACKENDS)}')
    names = (requested,) if requested else _working(platform)
    log.info('grouped matmul on %s: %s', platform, ', else '.join(names))
    return names


def _working(platform: str) -> tuple[str, ...]:
    """The backends of a platform that pass their trials on a device of it."""
    try:
        device = jax.local_devices(backend=platform)[0]
    except RuntimeError:
        log.info('grouped matmul: there is no %s here to try backends on', platform)
        return UNTRIED.get(platform, EXACT)
    *tried, last = ORDER.get(platform, EXACT)
    # In a thread of its own, where no trace and no mesh of the caller is in force.
    with ThreadPoolExecutor(1) as thread:
        return (*(name for name in tried if thread.submit(_works, name, device).result()), last)


# jax assigns the class to that name.
def _works(name: str, device: jax.Device) -> bool:  # pyright: ignore[reportInvalidTypeForm]
    """Whether a backend is there, is not dense, and gives what it should in a small case."""
    try:
        if name == 'native':
            native.load_tried()
            return True
        with jax.default_device(device):
            error, dense = trial(backend(name))
    except Exception as reason:  # a kernel that does not compile here raises anything
        log.info('grouped matmul: not %s: %s', name, str(reason).partition('\n')[0])
        return False
    if error > TOLERANCE['bfloat16'] or dense > DENSE:
        log.info('grouped matmul: not %s: error %.1e, %.1f times the FLOPs', name, error, dense)
        return False
    return True


def try_native() -> dict[str, float]:
    """The relative errors by dtype of the native kernels that were built; if none is too large,
    programs use the kernels from now on.

    OSError: they were not built, or do not load.
    """
    path = build.built()
    with jax.default_device(jax.local_devices(backend='cpu')[0]):
        errors = {dtype: trial(backend('native'), dtype)[0] for dtype in TOLERANCE}
    if all(error <= TOLERANCE[dtype] for dtype, error in errors.items()):
        build.note_trial(path, errors)
    return errors


def trial(tried: Backend, dtype: str = 'bfloat16') -> tuple[float, float]:
    """Largest relative error of the three products, and FLOPs over those needed (0: unknown)."""
    (d, f), rng = WIDTHS, np.random.default_rng(0)
    sizes, block = np.asarray(SIZES, np.int32), tried.block(sum(SIZES), len(SIZES))
    if not tried.fits(block, d, f, jnp.dtype(dtype)):
        raise ValueError(f'it does not take {dtype}')
    rows = sum(SIZES) + SPARE
    lhs, rhs, dy = (rng.standard_normal(shape).astype(jnp.dtype(dtype))
                    for shape in ((rows, d), (len(SIZES), d, f), (rows, f)))

    def run(lhs, rhs, dy, sizes):
        return (tried.matmul(lhs, rhs, sizes, block, transposed=False),
                tried.matmul(dy, rhs, sizes, block, transposed=True),
                tried.outer(lhs, dy, sizes, block, jnp.dtype(dtype)))

    compiled = jax.jit(run).lower(lhs, rhs, dy, sizes).compile()
    products = [np.asarray(y, np.float64) for y in compiled(lhs, rhs, dy, sizes)]
    exact = _by_numpy(lhs.astype(np.float64), rhs.astype(np.float64), dy.astype(np.float64), sizes)
    error = float(np.max([np.linalg.norm(y - y0) / np.linalg.norm(y0)
                          for y, y0 in zip(products, exact, strict=True)]))
    flops = (compiled.cost_analysis() or {}).get('flops', 0.0)
    return error if error == error else float('inf'), flops / (6 * sum(SIZES) * d * f)


def _by_numpy(
    lhs: np.ndarray, rhs: np.ndarray, dy: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """lhs @ rhs by group [S, F], and the gradients by both factors."""
    y, dx, dw = np.zeros_like(dy), np.zeros_like(lhs), np.zeros_like(rhs)
    ends = np.cumsum(sizes)
    for e, end in enumerate(ends):
        mine = slice(end - sizes[e], end)
        y[mine], dx[mine] = lhs[mine] @ rhs[e], dy[mine] @ rhs[e].T
        dw[e] = lhs[mine].T @ dy[mine]
    return y, dx, dw


def _take(names: tuple[str, ...], d: int) -> Take:
    """The copying of rows [M, D] by index: by a kernel where Triton is among the backends."""
    if 'triton' not in names:
        return gather.take
    from moe_jax.kernels import triton

    return triton.take if d % triton.LEAST == 0 else gather.take
