"""The native kernels against numpy, by shapes at whose edges they could go wrong.

A program of its own too: `python native_products.py` tries what was built in MOE_JAX_CACHE.
"""

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.kernels import native

# (sizes, rows, D, F): one row, groups that are empty, few and many rows, widths that fill no
# vector, more along the summed axis than are summed at a time, more rows than a block has.
CASES = [
    ((1,), 1, 2, 2), ((0, 3, 0, 2), 7, 6, 10), ((13, 1, 25), 40, 34, 66), ((0, 0), 4, 8, 8),
    ((5, 500, 11), 520, 18, 300), ((30, 2), 32, 1030, 14), ((900, 3), 903, 14, 34),
    ((12, 7), 19, 96, 64),
]
LIMIT = {'float32': 2e-6, 'bfloat16': 4e-3}


def inputs(sizes, rows, d, f, dtype):
    rng = np.random.default_rng(0)
    return (*(jnp.asarray(rng.normal(size=shape), dtype)
              for shape in ((rows, d), (len(sizes), d, f), (rows, f))),
            jnp.asarray(sizes, jnp.int32))


@jax.jit
def products(lhs, rhs, dy, sizes):
    return (native.matmul(lhs, rhs, sizes, transposed=False),
            native.matmul(dy, rhs, sizes, transposed=True),
            native.outer(lhs, dy, sizes, rhs.dtype))


def by_numpy(lhs, rhs, dy, sizes):
    lhs, rhs, dy = (np.asarray(a, np.float64) for a in (lhs, rhs, dy))
    y, dx, dw = np.zeros_like(dy), np.zeros_like(lhs), np.zeros_like(rhs)
    for e, (end, size) in enumerate(zip(np.cumsum(sizes), sizes, strict=True)):
        mine = slice(end - size, end)
        y[mine], dx[mine], dw[e] = lhs[mine] @ rhs[e], dy[mine] @ rhs[e].T, lhs[mine].T @ dy[mine]
    return y, dx, dw


def check(case, dtype):
    given = inputs(*case, dtype)
    for found, exact in zip(products(*given), by_numpy(*given), strict=True):
        assert found.dtype == dtype and found.shape == exact.shape
        off = np.abs(np.asarray(found, np.float64) - exact).max()
        assert off <= LIMIT[dtype] * np.abs(exact).max(), (case, dtype, off)


if __name__ == '__main__':
    for case in CASES:
        for dtype in LIMIT:
            check(case, dtype)
    print('right')
