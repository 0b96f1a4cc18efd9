"""Token lists that begin alike, laid into rows: what they share once, then the rest of each.

N lists, T slots of a row. A group is a trunk, the beginning that its lists share, and a branch for
each list; a row holds one group or several, as segments. What a branch is to the model:
`model.hidden`.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

WORTH = 4  # tokens; for a shorter common beginning no group is made

Tokens = Sequence[int]


class Group(NamedTuple):
    """The lists first, first+1, ..., last-1, their first `trunk` tokens shared, in `slots` slots.
    """

    first: int
    last: int
    trunk: int
    slots: int


def alone(lists: Sequence[Tokens]) -> list[Group]:
    """Each list a group of its own, all trunk."""
    return [Group(i, i + 1, len(tokens), len(tokens)) for i, tokens in enumerate(lists)]


def grouped(lists: Sequence[Tokens], room: int) -> list[Group]:
    """Neighbors among sorted lists in groups that take the fewest slots in all, exactly.

    A group takes at most `room` slots, which is at least the longest list's, and has a trunk of
    `WORTH` tokens or more, or one list. Lists that begin alike are neighbors, so the best groups
    are runs: of the first N lists, the last run of the best is found by dynamic programming.
    """
    shared = [0, *(common(a, b) for a, b in pairwise(map(np.asarray, lists)))]
    saved, best = [0], []  # slots saved in the first N lists; the group that ends there
    for last, tokens in enumerate(lists):
        trunk = total = len(tokens)
        most, group = saved[last], Group(last, last + 1, trunk, total)
        for first in range(last - 1, -1, -1):
            trunk, total = min(trunk, shared[first + 1]), total + len(lists[first])
            spared = (last - first) * trunk
            if trunk < WORTH or total - spared > room:
                break  # neither can change with more lists
            if saved[first] + spared > most:
                most = saved[first] + spared
                group = Group(first, last + 1, trunk, total - spared)
        saved.append(most)
        best.append(group)
    groups, end = [], len(best)
    while end:
        groups.append(best[end - 1])
        end = groups[-1].first
    return groups[::-1]


def common(a: np.ndarray, b: np.ndarray) -> int:
    """With how many equal tokens two lists begin."""
    size = min(len(a), len(b))
    apart = np.flatnonzero(a[:size] != b[:size])
    return int(apart[0]) if apart.size else size


def packed(groups: Sequence[Group], sizes: Sequence[int], least: int) -> list[list[Group]]:
    """Rows of groups: the largest first, each into the first row that still has room for it.

    A row's room is the smallest of `sizes`, which ascend, that holds its first group and is at
    least `least` slots, or the last of them.
    """
    rows: list[list[Group]] = []
    left = np.zeros(len(groups), np.int64)
    for group in sorted(groups, key=lambda group: -group.slots):
        fits = left[:len(rows)] >= group.slots
        if fits.any():
            row = int(fits.argmax())
        else:
            row = len(rows)
            rows.append([])
            left[row] = next((n for n in sizes if n >= max(group.slots, least)), sizes[-1])
        rows[row].append(group)
        left[row] -= group.slots
    return rows


def lay(
    row: Sequence[Group], lists: Sequence[Tokens], tokens: np.ndarray, segments: np.ndarray,
    branches: np.ndarray,
) -> dict[int, np.ndarray]:
    """Write a row's groups into arrays [T] of zeros; by list, the slot of each of its tokens."""
    found, at = {}, 0
    for segment, group in enumerate(row, start=1):
        begin, trunk = at, np.arange(at, at + group.trunk)
        tokens[trunk] = lists[group.first][:group.trunk]
        at += group.trunk
        for branch, i in enumerate(range(group.first, group.last), start=1):
            rest = np.arange(at, at + len(lists[i]) - group.trunk)
            tokens[rest], branches[rest] = lists[i][group.trunk:], branch
            found[i] = np.concatenate([trunk, rest])
            at += len(rest)
        segments[begin:at] = segment
    return found
