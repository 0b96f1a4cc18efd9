"""The arrays of a plan: which there are, and whether one by itself makes sense."""

from typing import Any

import numpy as np

ARRAYS = ('mix', 'perms', 'router', 'router_shift', 'alias', 'constants')


MATRICES = ('masks', 'weights')  # by leaf


INTEGERS = ('perms', 'alias')


def frozen(name: str, value: Any) -> np.ndarray:
    array = np.array(value)
    if name in INTEGERS:
        if array.dtype.kind not in 'iu':
            raise ValueError(f'plan {name}: ids must be integers, got {array.dtype}')
        array = array.astype(np.int32)
    elif name == 'masks':
        if array.dtype != np.uint8:
            raise ValueError(f'plan masks: packed bits must be uint8, got {array.dtype}')
    else:
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ValueError(f'plan {name}: has values that are not finite')
    array.setflags(write=False)
    return array


def check_mix(mix: np.ndarray) -> None:
    if mix.ndim != 2 or not 0 < mix.shape[0] <= mix.shape[1]:
        raise ValueError(f'plan mix: shape {mix.shape}, must be [G, E] with 1 <= G <= E')
    worst = int(np.argmax(np.abs(mix.sum(axis=1) - 1)))
    if abs(float(mix[worst].sum()) - 1) > 1e-4:
        raise ValueError(f'plan mix: row {worst} sums to {mix[worst].sum()}, every row must to 1')


def check_perms(perms: np.ndarray, experts: int) -> None:
    if perms.ndim != 2 or perms.shape[0] != experts:
        raise ValueError(f'plan perms: shape {perms.shape}, must be [E={experts}, F]')
    bad = np.flatnonzero((np.sort(perms, axis=1) != np.arange(perms.shape[1])).any(axis=1))
    if bad.size:
        raise ValueError(f'plan perms: row {bad[0]} is no permutation of 0..{perms.shape[1] - 1}')
