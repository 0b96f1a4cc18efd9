"""Which weights go: the exact number of lowest scores within a scope, lower index first among ties.

E experts; scores are [E, in, out]. Indices run over inputs and then outputs, then over experts,
then over leaves in the order gate, up, down, then over layers.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import numpy as np

from prune.plans.masks import pack
from prune.weights.zeros import Pattern

Parts = Callable[[], Iterable[tuple[Hashable, np.ndarray]]]
CHUNK = 1 << 22  # scores that are counted at a time


def share(sparsity: float, size: int) -> int:
    """floor(sparsity * size); the nudge makes it mean what was written (0.29 * 100 is 28.99...)."""
    return math.floor(sparsity * size + 1e-9)


def lowest(scores: np.ndarray, count: int, axis: int) -> np.ndarray:
    """bool, True at the `count` lowest scores along an axis; among equal ones the first go."""
    if count <= 0:
        return np.zeros(scores.shape, bool)
    kth = np.take(np.partition(scores, count - 1, axis=axis), [count - 1], axis=axis)
    below, equal = scores < kth, scores == kth
    missing = count - below.sum(axis=axis, keepdims=True)
    if (equal.sum(axis=axis, keepdims=True) == missing).all():
        return below | equal
    return below | (equal & (np.cumsum(equal, axis=axis, dtype=np.int32) <= missing))


def per_output(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """Mask [E, in, out] without floor(sparsity * in) inputs of every output."""
    return ~lowest(scores, share(sparsity, scores.shape[1]), axis=1)


def per_matrix(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """Mask without floor(sparsity * in * out) weights of every expert's matrix."""
    flat = scores.reshape(len(scores), -1)
    return ~lowest(flat, share(sparsity, flat.shape[1]), axis=1).reshape(scores.shape)


def per_pattern(scores: np.ndarray, pattern: Pattern) -> np.ndarray:
    """Mask with n of every m consecutive inputs of every output."""
    n, m = pattern
    experts, inputs, outputs = scores.shape
    groups = scores.reshape(experts, inputs // m, m, outputs)
    return ~lowest(groups, m - n, axis=2).reshape(scores.shape)


WITHIN = {'output': per_output, 'matrix': per_matrix}


def pooled(parts: Parts, sparsity: float) -> Mapping[Hashable, np.ndarray]:
    """Packed masks by key without the lowest floor(sparsity * all) scores of all parts together.

    parts(): (key, scores float32 [E, in, out] of 0 or more) one after the other, the same at every
    call; it is called three times, and one part at a time is held.
    """
    key, left = _threshold(parts, sparsity)
    masks = {}
    for name, scores in parts():
        bits = _bits(scores)
        gone, equal = bits < key, bits == key
        ties = int(equal.sum())
        if ties > left:
            equal &= (np.cumsum(equal, dtype=np.int64) <= left)
        left -= min(ties, left)
        masks[name] = pack(~(gone | equal).reshape(scores.shape))
    return masks


def _threshold(parts: Parts, sparsity: float) -> tuple[int, int]:
    """Bits of the last score that goes, and how many equal to it go; by digits of 16 bits."""
    high: Any = sum(_counts(_bits(scores) >> 16) for _, scores in parts())
    left = share(sparsity, int(high.sum()))
    if not left:
        return 0, 0
    digit, left = _reach(high, left)
    low: Any = sum(_counts(bits[bits >> 16 == digit] & 0xFFFF)
              for bits in (_bits(scores) for _, scores in parts()))
    last, left = _reach(low, left)
    return digit << 16 | last, left


def _reach(counts: np.ndarray, wanted: int) -> tuple[int, int]:
    """The bin in which the wanted-th falls, and which of that bin it is."""
    until = np.cumsum(counts)
    place = int(np.searchsorted(until, wanted))
    return place, wanted - (int(until[place - 1]) if place else 0)


def _counts(digits: np.ndarray) -> np.ndarray:
    counts = np.zeros(1 << 16, np.int64)
    for start in range(0, digits.size, CHUNK):
        counts += np.bincount(digits[start:start + CHUNK], minlength=1 << 16)
    return counts


def _bits(scores: np.ndarray) -> np.ndarray:
    """Flat uint32 in the order of the scores: that of bits is that of floats of 0 or more."""
    return np.ascontiguousarray(scores, np.float32).reshape(-1).view(np.uint32)
