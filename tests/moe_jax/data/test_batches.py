"""Batches: the k-th is a pure function of (data, size, seed, k), and nothing is left out."""

import itertools
import threading
import time

import numpy as np
import pytest

from moe_jax.data import batches


def packed(rows: int, length: int = 3, base: int = 0) -> dict[str, np.ndarray]:
    """Rows whose first token is their own number."""
    tokens = np.repeat(np.arange(base, base + rows, dtype=np.int32)[:, None], length, 1)
    return {'tokens': tokens, 'segments': np.ones_like(tokens),
            'weights': np.ones(tokens.shape, np.float32)}


def taken(stream, count):
    return [batch['tokens'][:, 0].tolist() for batch in itertools.islice(stream, count)]


def test_each_epoch_is_another_permutation_of_all_rows():
    rows = list(itertools.chain(*taken(batches.stream(packed(10), 4, seed=0), 5)))
    first, second = rows[:10], rows[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second != sorted(first)


@pytest.mark.parametrize('start', [0, 1, 7, 40])
def test_a_resumed_stream_equals_the_unbroken_one(start):
    sets = [(packed(5), 1.0), (packed(7, base=100), 2.5)]
    whole = taken(batches.mixture(sets, 3, seed=4), 45)
    assert taken(batches.mixture(sets, 3, seed=4, start=start), 5) == whole[start:start + 5]


def test_far_batches_cost_no_walk_and_seeds_differ():
    begin = time.monotonic()
    far = taken(batches.stream(packed(10), 4, seed=0, start=10**9), 1)
    assert time.monotonic() - begin < 0.5
    assert len(far[0]) == 4
    zero, one = (taken(batches.stream(packed(50), 50, seed), 1) for seed in (0, 1))
    assert zero != one


def test_the_shuffle_is_pinned():
    """numpy keeps raw PCG64 words the same; if this changes, old runs do not resume."""
    assert taken(batches.stream(packed(6), 6, seed=0), 1) == [[3, 2, 1, 0, 4, 5]]


def test_equal_weights_balance_every_batch():
    sets = [(packed(9, base=100 * i), 1.0) for i in range(4)]
    for rows in taken(batches.mixture(sets, 8, seed=0), 30):
        assert np.bincount(np.array(rows) // 100).tolist() == [2, 2, 2, 2]


def test_a_mixture_keeps_its_weights_and_each_set_its_epochs():
    sets = [(packed(10), 1.0), (packed(6, base=100), 3.0)]
    rows = np.array(list(itertools.chain(*taken(batches.mixture(sets, 4, seed=0), 30))))
    assert np.sum(rows < 100) == 30 and np.sum(rows >= 100) == 90
    assert np.bincount(rows[rows < 100]).tolist() == [3] * 10
    assert np.bincount(rows[rows >= 100] - 100).tolist() == [15] * 6


def test_uneven_weights_sum_to_a_cycle_and_a_tiny_one_is_still_drawn():
    schedule = batches._schedule((1.0, 1.0, 1.0))
    assert schedule.per_cycle_S.tolist() == [1366, 1365, 1365]
    assert batches._schedule((1.0, 1e-9)).per_cycle_S[1] == 1
    for which in range(3):
        places = np.flatnonzero(schedule.set_M == which)
        assert schedule.before_M[places].tolist() == list(range(len(places)))
        assert np.diff(places).max() <= 4


@pytest.mark.parametrize(('sets', 'batch', 'start', 'message'), [
    ([], 2, 0, 'no sets'),
    ([(packed(3), 0.0)], 2, 0, 'positive'),
    ([(packed(3), float('nan'))], 2, 0, 'positive'),
    ([(packed(3), 1.0), (packed(3, length=4), 1.0)], 2, 0, 'different row lengths'),
    ([(packed(0), 1.0)], 2, 0, 'no rows'),
    ([(packed(3), 1.0)], 0, 0, 'batch=0'),
    ([(packed(3), 1.0)], 2, -1, 'start=-1')])
def test_what_cannot_be_mixed_is_refused_at_once(sets, batch, start, message):
    with pytest.raises(ValueError, match=message):
        batches.mixture(sets, batch, 0, start)


@pytest.mark.parametrize('rows', [1, 4, 5, 8])
def test_heldout_holds_every_row_once_and_pads_the_last_batch(rows):
    made = batches.heldout(packed(rows), 4)
    assert all(array.shape == (4, 3) for batch in made for array in batch.values())
    tokens, segments, weights = (np.concatenate([batch[name] for batch in made])
                                 for name in ('tokens', 'segments', 'weights'))
    np.testing.assert_array_equal(tokens[:rows], packed(rows)['tokens'])
    assert len(tokens) - rows < 4
    assert not tokens[rows:].any() and not segments[rows:].any() and not weights[rows:].any()
    assert segments.dtype == np.int32 and weights.dtype == np.float32


def test_prefetch_gives_the_same_items_and_works_ahead():
    made = []

    def items():
        for i in range(5):
            made.append(i)
            yield i

    ahead = batches.prefetch(items(), 2)
    assert next(ahead) == 0
    deadline = time.monotonic() + 5
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(made) >= 3
    assert list(ahead) == [1, 2, 3, 4]


def test_prefetch_raises_what_its_iterator_raised_after_the_items_before_it():
    def items():
        yield 1
        raise KeyError('lost')

    ahead = batches.prefetch(items())
    assert next(ahead) == 1
    with pytest.raises(KeyError, match='lost'):
        next(ahead)


@pytest.mark.parametrize('n', [1, 2, 5])
def test_closing_prefetch_ends_its_thread(n):
    closed = threading.Event()

    def items():
        try:
            yield from itertools.count()
        finally:
            closed.set()

    ahead = batches.prefetch(items(), n)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    ahead.close()
    assert closed.wait(5)
    assert not [thread for thread in threading.enumerate() if thread.name == 'prefetch']


def test_prefetch_needs_room():
    with pytest.raises(ValueError, match='at least 1'):
        batches.prefetch([1], 0)
