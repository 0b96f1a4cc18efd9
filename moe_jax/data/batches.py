"""Batch streams whose k-th batch is a pure function of (data, batch size, seed, k).

The position in the data is therefore one integer, and a resumed run sees the same batches as an
unbroken one.
"""

import functools
import itertools
import math
import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

Packed = Mapping[str, np.ndarray]
Batch = dict[str, np.ndarray]
Rows = Sequence[int] | np.ndarray  # ids of the rows of a batch that a process reads
T = TypeVar('T')

SLOTS = 4096  # the resolution of mixture weights


def stream(packed: Packed, batch: int, seed: int, start: int = 0, *,
           rows: Rows | None = None) -> Iterator[Batch]:
    """Yields batches start, start+1, ... without end; every epoch is a new seeded permutation.

    Each batch is {'tokens', 'segments', 'weights'} [B, T]; a batch may straddle two epochs, so no
    row is ever left out. rows: the rows of each batch to make, of B (None: all).
    """
    return mixture([(packed, 1.0)], batch, seed, start, rows=rows)


def mixture(sets: Sequence[tuple[Packed, float]], batch: int, seed: int,
            start: int = 0, *, rows: Rows | None = None) -> Iterator[Batch]:
    """Yields batches whose rows come from several packed sets in proportion to positive weights.

    The sets alternate evenly (weights rounded to 1/4096), so every batch is as balanced as its
    size allows; each set goes through its own epochs. rows: as in `stream`, so that each of several
    processes reads its share. Raises ValueError for sets that cannot be mixed.
    """
    _check_sets(sets, batch)
    if start < 0:
        raise ValueError(f'batches: start={start} is negative')
    schedule = _schedule(tuple(weight for _, weight in sets))
    mine = np.arange(batch) if rows is None else np.asarray(rows)
    return (_batch(sets, schedule, k * batch + mine, seed) for k in itertools.count(start))


def heldout(packed: Packed, batch: int) -> list[Batch]:
    """All rows in order, in batches of one size; the last is filled with rows of padding."""
    rows = len(packed['tokens'])
    padding = -rows % batch
    return [{name: np.concatenate([array[first:first + batch],
                                   np.zeros((max(0, first + batch - rows), *array.shape[1:]),
                                            array.dtype)])
             for name, array in packed.items()}
            for first in range(0, rows + padding, batch)]


def prefetch(iterator: Iterable[T], n: int = 2) -> Iterator[T]:
    """Yields the same items, up to `n` made ahead by a thread, whose exceptions are raised here.

    Closing the generator, or leaving its loop, stops the thread after the item it is making.
    """
    if n < 1:
        raise ValueError(f'prefetch: n={n}, needs at least 1')
    return _prefetched(iterator, n)


def _prefetched(iterator: Iterable[T], n: int) -> Iterator[T]:
    ready: queue.Queue = queue.Queue(n)
    stop = threading.Event()

    def work() -> None:
        try:
            for item in iterator:
                ready.put((item, None, True))
                if stop.is_set():
                    return
            ready.put((None, None, False))
        except BaseException as error:  # any exception belongs to the reader
            ready.put((None, error, False))

    thread = threading.Thread(target=work, daemon=True, name='prefetch')
    thread.start()
    try:
        while True:
            item, error, more = ready.get()
            if error is not None:
                raise error
            if not more:
                return
            yield item
    finally:
        stop.set()
        while not ready.empty():  # a thread waiting for room finds it, sees `stop` and ends
            ready.get_nowait()
        thread.join()


class _Schedule(NamedTuple):
    """The set that each slot of a cycle draws from, and the set's earlier draws in the cycle."""

    set_M: np.ndarray
    before_M: np.ndarray
    per_cycle_S: np.ndarray


@functools.lru_cache(maxsize=64)
def _schedule(weights: tuple[float, ...]) -> _Schedule:
    """Shares SLOTS out by largest remainder, then spaces each set's slots evenly."""
    exact_S = np.array(weights) / sum(weights) * SLOTS
    per_cycle_S = np.maximum(1, np.floor(exact_S)).astype(np.int64)
    for favored in itertools.cycle(np.argsort(per_cycle_S - exact_S, kind='stable').tolist()):
        if per_cycle_S.sum() >= SLOTS:
            break
        per_cycle_S[favored] += 1
    set_C = np.repeat(np.arange(len(weights)), per_cycle_S)
    nth_C = np.concatenate([np.arange(count) for count in per_cycle_S])
    order = np.lexsort((set_C, (nth_C + 0.5) / per_cycle_S[set_C]))
    return _Schedule(set_C[order], nth_C[order], per_cycle_S)


@functools.lru_cache(maxsize=64)
def _permutation(seed: int, which: int, epoch: int, rows: int) -> np.ndarray:
    """A shuffle by sorting raw random words: numpy keeps these, not `permutation`, the same."""
    return np.argsort(np.random.PCG64([seed, which, epoch]).random_raw(rows), kind='stable')


def _batch(sets: Sequence[tuple[Packed, float]], schedule: _Schedule, numbers: np.ndarray,
           seed: int) -> Batch:
    """The rows of these numbers in the endless sequence of rows."""
    cycles, slots = np.divmod(numbers, len(schedule.set_M))
    drawn = schedule.set_M[slots]
    position = cycles * schedule.per_cycle_S[drawn] + schedule.before_M[slots]
    rows = []
    for which, place in zip(drawn.tolist(), position.tolist(), strict=True):
        size = len(sets[which][0]['tokens'])
        epoch, index = divmod(place, size)
        rows.append((sets[which][0], _permutation(seed, which, epoch, size)[index]))
    return {name: np.stack([packed[name][row] for packed, row in rows])
            for name in sets[0][0]}


def _check_sets(sets: Sequence[tuple[Packed, float]], batch: int) -> None:
    if batch < 1:
        raise ValueError(f'batches: batch={batch}, needs at least 1')
    if not sets:
        raise ValueError('batches: no sets to draw from')
    shapes = [packed['tokens'].shape for packed, _ in sets]
    if len({shape[1:] for shape in shapes}) > 1:
        raise ValueError(f'batches: sets of different row lengths cannot be mixed: {shapes}')
    if len({frozenset(packed) for packed, _ in sets}) > 1:
        raise ValueError(f'batches: sets have different arrays: {[sorted(p) for p, _ in sets]}')
    if min(shape[0] for shape in shapes) == 0:
        raise ValueError(f'batches: a set has no rows: {shapes}')
    bad = [weight for _, weight in sets if not (weight > 0 and math.isfinite(weight))]
    if bad:
        raise ValueError(f'batches: weights {bad} must be positive and finite; leave the set out')
