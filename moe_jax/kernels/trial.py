"""Which ways of the grouped matrix product this process uses: found out once, by trying them.

MOE_JAX_GROUPED names one way of `grouped_ways` to use instead.
"""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.kernels.table import IMPLEMENTATIONS, Implementation, implementation

VARIABLE = 'MOE_JAX_GROUPED'
# The most specialised first; `trial` throws out what does not run or is dense. The last is exact
# everywhere.
ORDER = MappingProxyType({
    'cpu': ('native', 'loop'), 'tpu': ('ragged', 'blocks'),
    'gpu': ('mosaic', 'triton', 'ragged', 'blocks'),
})
DENSE = 2.0  # FLOPs over those of the rows' own experts, above which a product counts as dense
SIZES, WIDTHS = (128, 0, 256, 128, 64, 128, 0, 128), (128, 256)  # of a trial; some rows unused
SPARE = 128
# Relative, against float64, of factors of a dtype.
TOLERANCE = MappingProxyType({'bfloat16': 2e-2, 'float32': 1e-5})
TRIED = MappingProxyType({'native': ('bfloat16', 'float32')})  # others in bfloat16 alone

log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def choose() -> tuple[str, ...]:
    """The ways to try on a product, in order; the first that fits its shapes is used.

    ValueError: MOE_JAX_GROUPED names no way.
    """
    forced = os.environ.get(VARIABLE)
    if forced:
        if forced not in IMPLEMENTATIONS:
            raise ValueError(f'{VARIABLE}={forced}: no such way of the grouped matrix product; '
                             f'use one of {", ".join(IMPLEMENTATIONS)}')
        found = (forced,)
    else:
        backend = jax.default_backend()
        order = ORDER.get(backend, ('blocks',))
        # In a thread of its own, where no trace and no mesh of the caller is in force.
        with ThreadPoolExecutor(1) as thread:
            found = (*(name for name in order[:-1] if thread.submit(_works, name).result()),
                     order[-1])
    log.info('grouped matrix products: %s', ', else '.join(found))
    return found


def _works(name: str) -> bool:
    """Whether a way is there, is not dense, and gives what it should in a small case."""
    try:
        trials = [(dtype, *trial(implementation(name), dtype))
                  for dtype in TRIED.get(name, ('bfloat16',))]
    except Exception as reason:  # a kernel that does not compile here raises anything
        log.info('grouped matrix products: not %s: %s', name, str(reason).partition('\n')[0])
        return False
    for dtype, error, dense in trials:
        if error > TOLERANCE[dtype] or dense > DENSE:
            log.info('grouped matrix products: not %s: in %s error %.1e, %.1f times the FLOPs',
                     name, dtype, error, dense)
            return False
    return True


def trial(way: Implementation, dtype: str = 'bfloat16') -> tuple[float, float]:
    """Largest relative error of the three products, and FLOPs over those needed (0: unknown)."""
    (d, f), rng = WIDTHS, np.random.default_rng(0)
    sizes, block = np.asarray(SIZES, np.int32), way.block(sum(SIZES), len(SIZES))
    if not way.fits(block, d, f, jnp.dtype(dtype)):
        raise ValueError(f'it does not take {dtype}')
    rows = sum(SIZES) + SPARE
    lhs, rhs, dy = (rng.standard_normal(shape).astype(jnp.dtype(dtype))
                    for shape in ((rows, d), (len(SIZES), d, f), (rows, f)))

    def run(lhs, rhs, dy, sizes):
        return (way.matmul(lhs, rhs, sizes, block, turned=False),
                way.matmul(dy, rhs, sizes, block, turned=True),
                way.outer(lhs, dy, sizes, block, jnp.dtype(dtype)))

    compiled = jax.jit(run).lower(lhs, rhs, dy, sizes).compile()
    found = [np.asarray(y, np.float64) for y in compiled(lhs, rhs, dy, sizes)]
    wanted = _by_numpy(*(a.astype(np.float64) for a in (lhs, rhs, dy)), sizes)
    error = float(np.max([np.linalg.norm(y - exact) / np.linalg.norm(exact)
                          for y, exact in zip(found, wanted, strict=True)]))
    flops = (compiled.cost_analysis() or {}).get('flops', 0.0)
    return error if error == error else float('inf'), flops / (6 * sum(SIZES) * d * f)


def _by_numpy(lhs, rhs, dy, sizes):
    y, dx, dw = np.zeros_like(dy), np.zeros_like(lhs), np.zeros_like(rhs)
    ends = np.cumsum(sizes)
    for e, end in enumerate(ends):
        mine = slice(end - sizes[e], end)
        y[mine], dx[mine] = lhs[mine] @ rhs[e], dy[mine] @ rhs[e].T
        dw[e] = lhs[mine].T @ dy[mine]
    return y, dx, dw
