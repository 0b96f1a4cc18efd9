"""Sets of experts to keep: all of them in order, and evolution over them.

Letters: E experts, G kept. A set is ascending ids [G] or a mask, bool [E]. With router groups
(equal blocks of experts) every set keeps the same number of each.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Errors = Callable[[np.ndarray], np.ndarray]


class Found(NamedTuple):
    """The sets that survived an evolution, masks [n, E], best first, and their errors [n]."""

    masks: np.ndarray
    errors: np.ndarray


def how_many(experts: int, count: int, groups: int = 1) -> int:
    """The number of sets of `count` experts."""
    return math.comb(experts // groups, count // groups) ** groups


def every(experts: int, count: int, groups: int = 1) -> np.ndarray:
    """All sets of `count` experts, ids [n, G], in lexicographic order."""
    size, each = experts // groups, count // groups
    block = np.array(list(itertools.combinations(range(size), each)), np.int32)
    subsets = np.zeros((1, 0), np.int32)
    for g in range(groups):
        tail = np.tile(block + g * size, (len(subsets), 1))
        subsets = np.concatenate([np.repeat(subsets, len(block), axis=0), tail], axis=1)
    return subsets


def ranked(values: np.ndarray, groups: int = 1) -> np.ndarray:
    """Experts by falling value inside each block, a permutation [E]; ties, the lower id.

    Searches draw random numbers in this order, so that the experts' numbers decide nothing.
    """
    blocks = np.asarray(values, np.float64).reshape(groups, -1)
    inside = np.argsort(-blocks, axis=1, kind='stable')
    return (inside + np.arange(groups)[:, None] * blocks.shape[1]).ravel()


def highest(keys: np.ndarray, count: int, groups: int) -> np.ndarray:
    """The sets of the highest keys [n, E], equally many of each block, as masks [n, E]."""
    blocks = keys.reshape(len(keys), groups, -1)
    best = np.argsort(-blocks, axis=2, kind='stable')[:, :, :count // groups]
    masks = np.zeros(blocks.shape, bool)
    np.put_along_axis(masks, best, True, axis=2)
    return masks.reshape(keys.shape)


def crossed(a: np.ndarray, b: np.ndarray, groups: int, rng: np.random.Generator) -> np.ndarray:
    """Children of sets a and b, masks [n, E]: all that both keep, the rest drawn from their union.
    """
    keys = rng.random(a.shape) + a + b
    return highest(keys, int(a[0].sum()), groups)


def swapped(masks: np.ndarray, groups: int, rng: np.random.Generator) -> np.ndarray:
    """Each set with one kept expert exchanged for one that was dropped, in a random block."""
    n, experts = masks.shape
    block = np.arange(experts) * groups // experts
    inside = block[None] == rng.integers(groups, size=n)[:, None]
    keys, new = rng.random(masks.shape), masks.copy()
    gone = np.argmax(np.where(masks & inside, keys, -1), axis=1)
    come = np.argmax(np.where(~masks & inside, keys, -1), axis=1)
    new[np.arange(n), gone], new[np.arange(n), come] = False, True
    return new


def evolve(
    errors: Errors, seeds: np.ndarray, *, groups: int, population: int, generations: int,
    rng: np.random.Generator,
) -> Found:
    """Look for the set of least error from seeds, masks [n, E] of one size, smaller than E.

    The first population is the seeds and random sets. Each generation makes as many children:
    parents are the better of two drawn sets, children are crossed, then swapped none, one or two
    times. The best of old and new live on, so that nothing found is lost. errors(masks [n, E]) ->
    [n] is asked once for each set.
    """
    count = int(seeds[0].sum())
    random = highest(rng.random((population, seeds.shape[1])), count, groups)
    known: set[bytes] = set()
    living = _new(np.concatenate([seeds, random])[:max(population, len(seeds))], known)
    values = errors(living)
    for _ in range(generations):
        order = np.argsort(values, kind='stable')[:population]
        living, values = living[order], values[order]
        a, b = rng.integers(len(living), size=(2, population, 2)).min(axis=2)
        children = crossed(living[a], living[b], groups, rng)
        swaps = rng.integers(3, size=(population, 1))
        for least in (1, 2):
            children = np.where(swaps >= least, swapped(children, groups, rng), children)
        children = _new(children, known)
        if len(children):
            living = np.concatenate([living, children])
            values = np.concatenate([values, errors(children)])
    order = np.argsort(values, kind='stable')
    return Found(living[order], values[order])


def _new(masks: np.ndarray, known: set[bytes]) -> np.ndarray:
    """The masks that were not seen before, each once; `known` learns them."""
    fresh = []
    for i, mask in enumerate(masks):
        if (key := mask.tobytes()) not in known:
            known.add(key)
            fresh.append(i)
    return masks[fresh]
