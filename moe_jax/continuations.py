"""Log-probabilities of continuations: of answers, of options, of the rest of a text.

R requests, B rows a batch, T tokens in a row, A tokens of the longest continuation in a batch.
Requests are sorted into rows of few lengths, so that few programs are compiled, and logits are
computed where a continuation stands and nowhere else.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from moe_jax import sharding
from moe_jax.config import Config
from moe_jax.inputs import checked
from moe_jax.model import Params, hidden
from moe_jax.score import target_log_probs

SHORTEST = 32
Request = tuple[Sequence[int], Sequence[int]]


class Found(NamedTuple):
    """Of each request, in their order: summed log-probability [R] in nats, and whether every token
    is the likeliest one [R]."""

    log_prob: np.ndarray
    greedy: np.ndarray


class _Row(NamedTuple):
    request: int
    tokens: list[int]
    answer: int


def score_continuations(
    cfg: Config,
    params: Params,
    requests: Sequence[Request],
    *,
    batch: int = 8,
    progress: Callable[[int], None] | None = None,
) -> Found:
    """Log-probability of each request's continuation given its context, both token ids.

    Contexts that do not fit the model's positions lose their beginning; the last token of a
    continuation is predicted but never read, so a row may hold one token more than the positions.
    `batch` rows at a time of the longest length, more of the shorter ones. progress is called with
    the number of requests done. Raises ValueError for an empty context or continuation, and for a
    continuation longer than the positions.
    """
    rows = [_row(cfg, i, *request) for i, request in enumerate(requests)]
    log_prob, greedy = np.zeros(len(rows)), np.zeros(len(rows), bool)
    for length, part in _batches(cfg, rows, batch):
        found = _run(cfg, params, part, length)
        for row, value, hit in zip(part, *found, strict=False):
            log_prob[row.request], greedy[row.request] = value, hit
        if progress is not None:
            progress(len(part))
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


def _row(cfg: Config, index: int, context: Sequence[int], answer: Sequence[int]) -> _Row:
    if not len(context) or not len(answer):
        raise ValueError(f'request {index}: context and continuation need at least one token each '
                         '(a text without a past gets the end token as its context)')
    if len(answer) > cfg.positions:
        raise ValueError(f'request {index}: a continuation of {len(answer)} tokens, and the model '
                         f'has {cfg.positions} positions')
    tokens = [*context, *answer][-(cfg.positions + 1):]
    return _Row(index, [int(t) for t in tokens], len(answer))


def _batches(cfg: Config, rows: list[_Row], batch: int) -> Iterator[tuple[int, list[_Row]]]:
    """Rows of like length together, longest first, so that memory runs out at once or never."""
    sizes = lengths(cfg.positions)
    found: dict[int, list[_Row]] = {}
    for row in rows:
        found.setdefault(next(n for n in sizes if n >= len(row.tokens) - 1), []).append(row)
    for length in sorted(found, reverse=True):
        count = _rows_of(cfg, length, batch)
        part = sorted(found[length], key=lambda row: -row.answer)
        for first in range(0, len(part), count):
            yield length, part[first:first + count]


def _rows_of(cfg: Config, length: int, batch: int) -> int:
    """How many rows of a length take as much as `batch` of the longest, up to 8 times as many."""
    return batch * max(1, min(8, cfg.positions // length))


def _run(cfg: Config, params: Params, part: list[_Row], length: int
         ) -> tuple[np.ndarray, np.ndarray]:
    """Sums and greedy flags of a batch of rows, padded to one of few shapes."""
    longest = max(row.answer for row in part)
    width = min(length, 1 << (longest - 1).bit_length())
    count = 1 << (len(part) - 1).bit_length()  # so that a last batch has one of few shapes
    tokens, segments = (np.zeros((count, length), np.int32) for _ in range(2))
    places, targets = (np.zeros((count, width), np.int32) for _ in range(2))
    used = np.zeros((count, width), bool)
    for i, row in enumerate(part):
        read, n = row.tokens[:-1], row.answer
        tokens[i, :len(read)], segments[i, :len(read)] = read, 1
        places[i, :n] = np.arange(len(read) - n, len(read))
        targets[i, :n], used[i, :n] = row.tokens[-n:], True
    tokens, segments = checked(cfg, tokens, segments, 'score_continuations')
    if targets.max() >= cfg.vocab or targets.min() < 0:
        raise ValueError(f'score_continuations: token ids up to {targets.max()} do not fit vocab='
                         f'{cfg.vocab}; is this the tokenizer of the model?')
    return tuple(np.asarray(a) for a in _scorer(cfg)(
        params, tokens, segments, places, targets, used))


@lru_cache(maxsize=64)
def _scorer(cfg: Config):
    @sharding.jit
    def run(params, tokens, segments, places, targets, used):
        x, _ = hidden(cfg, params, tokens, segments)
        x = jnp.take_along_axis(x, places[:, :, None], axis=1)
        log_probs, greedy = target_log_probs(cfg, params, x, targets)
        return sharding.replicate((jnp.where(used, log_probs, 0.0).sum(axis=1),
                                   (greedy | ~used).all(axis=1)))

    return run
