"""Grouping by common beginnings, by trying every way to group; rows that say what was laid."""

import itertools

import numpy as np
import pytest

from moe_jax.inference.branches import WORTH, Group, alone, common, grouped, lay, packed


def drawn(seed, count=7):
    """Sorted distinct lists of which many begin alike."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 9, 30).tolist()
    found = {tuple(base[:rng.integers(1, 25)]) + tuple(rng.integers(0, 3, rng.integers(0, 6)))
             for _ in range(count)}
    return sorted(tuple(map(int, tokens)) for tokens in found if tokens)


def shared(lists):
    return next((i for i, column in enumerate(zip(*lists, strict=False)) if len(set(column)) > 1),
                min(map(len, lists)))


def fewest(lists, room):
    """The fewest slots of any way to cut the lists into runs, each as groups may be."""
    best = np.inf
    for cuts in itertools.product([False, True], repeat=len(lists) - 1):
        ends = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(lists)]
        runs = [lists[a:b] for a, b in itertools.pairwise(ends)]
        slots = [sum(map(len, run)) - (len(run) - 1) * shared(run) for run in runs]
        fits = all(len(run) == 1 or (shared(run) >= WORTH and n <= room)
                   for run, n in zip(runs, slots, strict=True))
        best = min(best, sum(slots)) if fits else best
    return best


@pytest.mark.parametrize('seed', range(12))
@pytest.mark.parametrize('room', [30, 45, 1000])
def test_groups_take_the_fewest_slots(seed, room):
    lists = drawn(seed)
    groups = grouped(lists, room)
    assert [i for g in groups for i in range(g.first, g.last)] == list(range(len(lists)))
    for group in groups:
        run = lists[group.first:group.last]
        assert group.trunk == shared(run) and group.slots <= room
        assert group.slots == sum(map(len, run)) - (len(run) - 1) * group.trunk
    assert sum(group.slots for group in groups) == fewest(lists, room)


def test_options_of_questions_after_the_same_examples():
    """Few-shot: all share 40 tokens, a question's options 10 more; room says how many together."""
    lists = [(*range(40), *[50 + q] * 10, 70 + o) for q in range(6) for o in range(4)]
    wide, narrow = grouped(lists, 1000), grouped(lists, 60)
    assert [(g.last - g.first, g.trunk) for g in wide] == [(24, 40)]
    assert [(g.last - g.first, g.trunk) for g in narrow] == [(4, 50)] * 6


def test_lists_that_only_open_alike_stay_alone():
    lists = [(0, 1, 2, 3), (0, 1, 2, 4), (0, 5)]
    assert grouped(lists, 100) == alone(lists)
    assert grouped([], 100) == []


def test_a_beginning_of_another_is_its_trunk():
    lists = [(1, 2, 3, 4), (1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 6)]
    assert grouped(lists, 100) == [Group(0, 3, 4, 4 + 1 + 2)]


def test_common_beginnings():
    a, b = np.array([1, 2, 3]), np.array([1, 2, 4, 5])
    assert [common(a, b), common(a, a), common(a, a[:2]), common(a, b[2:])] == [2, 3, 2, 0]


def test_rows_are_filled_largest_first():
    groups = [Group(i, i + 1, n, n) for i, n in enumerate([10, 30, 70, 20, 5, 90])]
    rows = packed(groups, [32, 64, 100], 64)
    assert [[group.slots for group in row] for row in rows] == [[90, 10], [70, 30], [20, 5]]
    rows = packed(groups, [32, 64, 100], 16)
    assert [[group.slots for group in row] for row in rows] == [[90, 10], [70, 30], [20, 5]]
    assert packed([], [32], 16) == []


def test_what_is_laid_reads_back():
    lists = drawn(3, 12)
    for row in packed(grouped(lists, 40), [32, 64, 96], 64):
        tokens, segments, branches = np.zeros((3, 96), np.int32)
        slots = lay(row, lists, tokens, segments, branches)
        used = sum(group.slots for group in row)
        assert (segments[:used] > 0).all() and not segments[used:].any()
        assert sorted(slots) == sorted(i for g in row for i in range(g.first, g.last))
        for i, at in slots.items():
            assert tuple(tokens[at].tolist()) == lists[i]
            assert (np.diff(at) > 0).all() and len(set(segments[at])) == 1
            way = branches[at]
            assert len(set(way[way > 0])) <= 1 and (np.diff(way) >= 0).all()
        for segment, group in enumerate(row, start=1):
            here = branches[segments == segment]
            assert (here == 0).sum() == group.trunk
