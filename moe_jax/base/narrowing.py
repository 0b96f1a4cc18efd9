"""Casts to a narrower dtype: infinities they would make are refused, and new zeros are told."""

import dataclasses
import logging
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from moe_jax.base.tree import Params, leaves_with_paths

log = logging.getLogger('moe_jax')
SHOWN = 3  # names of tensors in a message
BLOCK = 1 << 18  # numbers that are looked at together


def narrows(source: Any, target: Any) -> bool:
    """Whether a dtype ends below the largest numbers of another, or above its smallest."""
    wide, narrow = ml_dtypes.finfo(source), ml_dtypes.finfo(target)
    return bool(float(narrow.max) < float(wide.max)
                or float(narrow.smallest_subnormal) > float(wide.smallest_subnormal))


def _ends(target: Any) -> tuple[float, float]:
    """From where on sizes round to infinity, and up to where they round to zero."""
    kind = ml_dtypes.finfo(target)
    half = 2.0 ** (int(kind.maxexp) - 2 - int(kind.nmant))  # half the gap below the next number
    return float(kind.max) + half, float(kind.smallest_subnormal) / 2


@dataclasses.dataclass
class Casts:
    """The casts of one load: refuses each that makes an infinity; `tell` logs what became zero.

    where: the folder, for messages.
    """

    where: Any
    zeros: dict[tuple[str, str, str], int] = dataclasses.field(default_factory=dict)

    def put(self, name: str, source: np.ndarray, out: np.ndarray, part: str = '') -> None:
        """Copy a tensor, or a part of it, cast to the dtype of `out`.

        part: which one; copied for several devices, it is counted once.
        """
        if narrows(source.dtype, out.dtype):
            self._check(name, part, *_lost_by_blocks(source, *_ends(out.dtype)), out.dtype)
        out[...] = source

    def cast(self, name: str, source: jax.Array, target: Any) -> jax.Array:
        """The same for an array on its devices, which keeps its sharding."""
        if narrows(source.dtype, target):
            beyond, largest, zeros = map(np.asarray, _lost_on_device(source, _ends(target)))
            self._check(name, '', beyond, largest, zeros, target)
        return source.astype(target)

    def _check(self, name: str, part: str, beyond: Any, largest: Any, zeros: Any, target: Any
               ) -> None:
        kind = np.dtype(target).name
        if beyond:
            others = 'float32' if kind == 'bfloat16' else 'bfloat16 or float32'
            advice = (f'Cast to {others} instead' if kind != 'float32' else
                      'Scale the weights down first')
            raise ValueError(
                f'{self.where}: {name} has {int(beyond):,} finite values beyond {kind}, which '
                f'ends at {float(ml_dtypes.finfo(target).max):.5g}; the largest is '
                f'{float(largest):.5g}. {advice}')
        if zeros:
            self.zeros[kind, name, part] = int(zeros)

    def tell(self) -> None:
        """Log how many values were too small for their new dtype, by dtype."""
        for kind in sorted({kind for kind, _, _ in self.zeros}):
            counts = {key: n for key, n in self.zeros.items() if key[0] == kind}
            names = list(dict.fromkeys(name for _, name, _ in counts))
            log.info('%s: %s values of %s tensors are too small for %s and became zero: %s%s',
                     self.where, f'{sum(counts.values()):,}', len(names), kind,
                     '; '.join(names[:SHOWN]),
                     f' and {len(names) - SHOWN} more' if len(names) > SHOWN else '')


def warn_of_computing(where: Any, params: Params, dtype: str) -> None:
    """Warn of weights that stay as they are, but are beyond the dtype they are computed in.

    Only float16 ends so low that weights can be beyond it. Routers are computed in float32.
    """
    beyond = [path for path, leaf in leaves_with_paths(params)
              if dtype == 'float16' and '/router/' not in path and narrows(leaf.dtype, dtype)
              and int(_lost_on_device(leaf, _ends(dtype))[0])]
    if beyond:
        more = f' and {len(beyond) - SHOWN} more' if len(beyond) > SHOWN else ''
        warnings.warn(f'{where}: {"; ".join(beyond[:SHOWN])}{more} have finite values beyond '
                      f"{dtype}, which the config computes in; load with dtype='bfloat16' or "
                      "'float32', or set another dtype in the config", stacklevel=4)


def _lost(np_: Any, values: Any, end: Any, tiny: Any) -> tuple[Any, Any, Any]:
    """How many finite sizes are at least `end`, the largest finite one, how many at most `tiny`."""
    size = np_.abs(values)
    finite = np_.isfinite(size)
    return (np_.sum(finite & (size >= end)), np_.max(np_.where(finite, size, 0), initial=0),
            np_.sum((size > 0) & (size <= tiny)))


def _lost_by_blocks(values: np.ndarray, end: float, tiny: float) -> tuple[int, float, int]:
    """The same a few rows at a time, so that no copy of a large tensor is made."""
    if values.ndim > 1 and values.strides[-1] > values.strides[-2]:
        values = np.swapaxes(values, -1, -2)  # rows as they lie in memory
    rows = np.atleast_2d(values)
    each = max(1, BLOCK * len(rows) // max(1, rows.size))
    beyond, largest, zeros = 0, 0.0, 0
    for first in range(0, len(rows), each):
        block = rows[first:first + each]
        wide = block if block.dtype.itemsize > 2 else block.astype(np.float32)
        more, top, small = _lost(np, wide, end, tiny)
        beyond, largest, zeros = beyond + more, max(largest, top), zeros + small
    return beyond, largest, zeros


@jax.jit
def _lost_on_device(values: jax.Array, ends: Any) -> tuple[Any, Any, Any]:
    return _lost(jnp, values.astype(jnp.float32), *ends)
