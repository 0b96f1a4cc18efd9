"""Log-probabilities of continuations: of answers, of options, of the rest of a text.

N lists of tokens to read, B rows a batch, T tokens in a row, A places a row to predict at. Requests
that begin alike share a row, in which their common beginning is computed once (`branches`). Rows
have few lengths, so that few programs are compiled, and logits are computed where a continuation
stands and nowhere else.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from moe_jax.base import sharding
from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.inference.branches import Group, alone, grouped, lay, packed
from moe_jax.inference.score import target_log_probs
from moe_jax.model.decoder import hidden

SHORTEST = 32
ROW = 512  # slots that are filled with unrelated requests rather than padded
Request = tuple[Sequence[int], Sequence[int]]


class Found(NamedTuple):
    """Of each request, in their order: summed log-probability [R] in nats, and whether every token
    is the likeliest one [R]."""

    log_prob: np.ndarray
    greedy: np.ndarray


class _Reading(NamedTuple):
    """Distinct lists of tokens, sorted, and what is asked of each: (request, its answer)."""

    lists: list[tuple[int, ...]]
    asked: list[list[tuple[int, list[int]]]]


class _Shape(NamedTuple):
    """Of a batch: B rows, T tokens, A places."""

    rows: int
    length: int
    places: int


def score_continuations(
    cfg: Config,
    params: Params,
    requests: Sequence[Request],
    *,
    batch: int = 8,
    progress: Callable[[int], None] | None = None,
) -> Found:
    """Log-probability of each request's continuation given its context, both token ids.

    What requests have in common at their beginning is computed once, whatever their order. Contexts
    that do not fit the model's positions lose their beginning; the last token of a continuation is
    predicted but never read, so context and continuation may be one token more than the positions.
    `batch` rows at a time of the longest length, more of the shorter ones. progress is called with
    the number of requests done. With `cfg.capacity_eval` set, a score depends a little on the other
    requests. Raises ValueError for an empty context or continuation, for a continuation longer than
    the positions, and for ids outside the vocabulary.
    """
    reading = _reading([_fitted(cfg, i, *request) for i, request in enumerate(requests)])
    log_prob, greedy = np.zeros(len(requests)), np.ones(len(requests), bool)
    parts = sharding.row_parts(sharding.mesh_of(params))
    for shape, rows in _batches(cfg, reading, _rows(cfg, reading.lists), batch, parts):
        *arrays, owners = _arrays(shape, rows, reading)
        values, hits = (np.asarray(a).ravel()[:len(owners)] for a in _scorer(cfg)(params, *arrays))
        np.add.at(log_prob, owners, values)
        np.logical_and.at(greedy, owners, hits)
        if progress is not None:
            progress(len(np.unique(owners)))
    return Found(log_prob, greedy)


def lengths(longest: int) -> list[int]:
    """The row lengths to compile for: 32 and then each a half or a third longer, up to `longest`.

    32, 48, 64, 96, 128, ...: at most a third of a row is padding.
    """
    sizes, size = [], SHORTEST
    while size < longest:
        sizes += [n for n in (size, size * 3 // 2) if n < longest]
        size *= 2
    return [*sizes, longest]


def rounded(count: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, ... that is at least `count`."""
    power = 1 << (count - 1).bit_length()
    return power * 3 // 4 if count <= power * 3 // 4 else power


def _fitted(cfg: Config, index: int, context: Sequence[int], answer: Sequence[int]
            ) -> tuple[tuple[int, ...], list[int]]:
    """What is read, all tokens that fit but the last, and the answer."""
    if not len(context) or not len(answer):
        raise ValueError(f'request {index}: context and continuation need at least one token each '
                         '(a text without a past gets the end token as its context)')
    if len(answer) > cfg.positions:
        raise ValueError(f'request {index}: a continuation of {len(answer)} tokens, and the model '
                         f'has {cfg.positions} positions')
    tokens = [int(t) for t in [*context, *answer][-(cfg.positions + 1):]]
    if not 0 <= min(tokens) <= max(tokens) < cfg.vocab:
        raise ValueError(f'score_continuations: token ids {min(tokens)}..{max(tokens)} of request '
                         f'{index} do not fit vocab={cfg.vocab}; is this the tokenizer of the '
                         'model?')
    return tuple(tokens[:-1]), tokens[-len(answer):]


def _reading(fitted: Sequence[tuple[tuple[int, ...], list[int]]]) -> _Reading:
    requests: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for request, (tokens, answer) in enumerate(fitted):
        requests.setdefault(tokens, []).append((request, answer))
    lists = sorted(requests)
    return _Reading(lists, [requests[tokens] for tokens in lists])


def _rows(cfg: Config, lists: Sequence[tuple[int, ...]]) -> list[list[Group]]:
    """The groups of each row. A group's row is at most about twice as long as the longest list."""
    if cfg.skip is not None and cfg.skip.protect:  # of a row, the most important tokens: all in it
        return [[group] for group in alone(lists)]
    room = min(cfg.positions, max(ROW, 2 * max(map(len, lists), default=0)))
    return packed(grouped(lists, room), lengths(cfg.positions), ROW)


def _batches(cfg: Config, reading: _Reading, rows: Sequence[list[Group]], batch: int, parts: int
             ) -> Iterator[tuple[_Shape, list[list[Group]]]]:
    """Rows of like length together, longest first, so that memory runs out at once or never.

    All batches of one length have one shape: rows are dealt to them in turn. Their number divides
    over the `parts` of a mesh.
    """
    sizes = lengths(cfg.positions)
    by_length: dict[int, list[list[Group]]] = {}
    for row in rows:
        used = sum(group.slots for group in row)
        by_length.setdefault(next(n for n in sizes if n >= used), []).append(row)
    for length in sorted(by_length, reverse=True):
        same = by_length[length]
        many = -(-len(same) // _rows_of(cfg, length, batch))
        dealt = [same[first::many] for first in range(many)]
        count = parts * rounded(-(-len(dealt[0]) // parts))
        most = max(sum(_places(reading, row) for row in part) for part in dealt)
        for part in dealt:
            yield _Shape(count, length, rounded(-(-most // count))), part


def _places(reading: _Reading, row: list[Group]) -> int:
    """At how many places a row predicts."""
    return sum(len(answer) for group in row for i in range(group.first, group.last)
               for _, answer in reading.asked[i])


def _rows_of(cfg: Config, length: int, batch: int) -> int:
    """How many rows of a length take as much as `batch` of the longest, up to 8 times as many."""
    return batch * max(1, min(8, cfg.positions // length))


def _arrays(shape: _Shape, rows: Sequence[list[Group]], reading: _Reading
            ) -> tuple[np.ndarray, ...]:
    """tokens, segments, branches [B, T]; places in all B T tokens and targets [B, A]; owners.

    Places are those of all rows one after the other, so that rows with many and with few answers
    share the work; owners says whose each is, and ends where padding begins.
    """
    tokens, segments, branches = np.zeros((3, shape.rows, shape.length), np.int32)
    places, targets, owners = [], [], []
    for i, row in enumerate(rows):
        for member, slots in lay(row, reading.lists, tokens[i], segments[i], branches[i]).items():
            for request, answer in reading.asked[member]:
                places.append(i * shape.length + slots[-len(answer):])
                targets += answer
                owners += [request] * len(answer)
    filled = np.zeros((2, shape.rows * shape.places), np.int32)
    filled[:, :len(owners)] = np.concatenate(places), targets
    return (tokens, segments, branches, *filled.reshape(2, shape.rows, shape.places),
            np.array(owners))


@lru_cache(maxsize=64)
def _scorer(cfg: Config):
    @sharding.jit
    def run(params, tokens, segments, branches, places, targets):
        x, _ = hidden(cfg, params, tokens, segments, branches=branches)
        x = sharding.keep_rows(x.reshape(-1, x.shape[-1])[places])
        return sharding.replicate(target_log_probs(cfg, params, x, targets))

    return run
