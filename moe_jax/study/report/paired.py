"""Paired bootstrap over groups of examples and seeds, shared by every comparison.

Replicate b of every model is computed on the same drawn groups, so the difference of two models'
replicates *is* the paired replicate, and a mean over tasks is stratified because each task draws on
its own.

Letters: B resamples, G groups of a task, M models, N examples, S seeds.
"""

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
from scipy import stats

from moe_jax.study.report.expert_count.values import Examples, Model

RESAMPLES = 2000
LEVEL = 0.95
SEED = 20240607
BLOCK = 1 << 22  # resampled group picks held in memory at once

Key = tuple[int, str, Model]
What = TypeVar('What')
What_co = TypeVar('What_co', covariant=True)


class Score(Protocol[What_co]):
    """A model on one task's examples; `model` says which, in a study's own terms."""

    @property
    def seed(self) -> int: ...

    @property
    def task(self) -> str: ...

    @property
    def model(self) -> What_co: ...

    @property
    def examples(self) -> Examples: ...


S = TypeVar('S', bound=Score[Any])


@dataclass(frozen=True, eq=False)
class Estimate:
    """A number with its bootstrap replicates [B]; the interval is their 95% percentile one."""

    value: float
    draws: np.ndarray

    @cached_property
    def low(self) -> float:
        return float(np.quantile(self.draws, (1 - LEVEL) / 2))

    @cached_property
    def high(self) -> float:
        return float(np.quantile(self.draws, (1 + LEVEL) / 2))

    @property
    def status(self) -> str:
        """'better' above zero, 'worse' below it, 'noise' when the interval holds zero."""
        if self.low > 0:
            return 'better'
        return 'worse' if self.high < 0 else 'noise'

    def __sub__(self, other: 'Estimate') -> 'Estimate':
        return Estimate(self.value - other.value, self.draws - other.draws)


def generator(name: str) -> np.random.Generator:
    """A separate stream for each name: no comparison changes when another task or seed is added."""
    return np.random.default_rng([SEED, zlib.crc32(name.encode())])


def resampled_means(
    sums_GM: np.ndarray, weights_GM: np.ndarray, *, name: str, resamples: int = RESAMPLES
) -> np.ndarray:
    """Weighted means [B, M] over G groups drawn with replacement, the same draw for every column.

    `sums_GM` holds sum(w * x) of each group, `weights_GM` sum(w).
    """
    groups = sums_GM.shape[0]
    rng = generator(name)
    rows = max(1, BLOCK // groups)
    means = np.empty((resamples, sums_GM.shape[1]))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        picks = rng.integers(groups, size=(size, groups)) + groups * np.arange(size)[:, None]
        counts = np.bincount(picks.ravel(), minlength=size * groups).reshape(size, groups)
        counts = counts.astype(np.float64)
        # A draw of groups without weight has no mean; NaN would spread to all tasks.
        weights = counts @ weights_GM
        means[start : start + size] = np.where(
            weights > 0, (counts @ sums_GM) / np.where(weights > 0, weights, 1), np.nan
        )
    overall = sums_GM.sum(0) / weights_GM.sum(0)
    return np.where(np.isnan(means), overall, means)


def expansion(groups: int) -> float:
    """Factor by which few groups make a percentile interval too short (1.02 at 70, 1.87 at 4).

    t quantile over normal quantile, times sqrt(G / (G - 1)): Hesterberg, "What teachers should know
    about the bootstrap" (2015), section 4.4, the expanded percentile interval.
    """
    tail = (1 + LEVEL) / 2
    return (
        float(stats.t.ppf(tail, groups - 1) / stats.norm.ppf(tail)) * (groups / (groups - 1)) ** 0.5
    )


def units(members: Sequence[tuple[Score[Any], np.ndarray]]) -> list[tuple[str, ...]]:
    """The labels [N] of the drawn units of each score: groups, or examples of one group."""
    groups = {g for s, mask in members for g, m in zip(s.examples.groups, mask, strict=True) if m}
    if len(groups) > 1:
        return [s.examples.groups for s, _ in members]
    return [s.examples.ids for s, _ in members]


def _reference(scores: Sequence[Score[Any]]) -> tuple[str, ...]:
    """The example ids that most scores of a task share (ties: the larger set, then the first)."""
    votes = Counter(tuple(sorted(s.examples.ids)) for s in scores)
    return min(votes, key=lambda ids: (-votes[ids], -len(ids), ids))


def align(scores: Iterable[S]) -> tuple[dict[str, list[tuple[S, np.ndarray]]], list[str]]:
    """Scores of each task with masks [N] of the shared examples; notes on what did not fit."""
    by_task: dict[str, list[S]] = {}
    for score in scores:
        by_task.setdefault(score.task, []).append(score)
    aligned, notes = {}, []
    for task, members in sorted(by_task.items()):
        ids = _reference(members)
        wanted, kept, cut = set(ids), [], 0
        for score in members:
            mask = np.fromiter((i in wanted for i in score.examples.ids), bool)
            if mask.sum() == len(ids) and score.examples.weight[mask].sum() > 0:
                kept.append((score, mask))
                cut += not mask.all()
        lost = len(members) - len(kept)
        if lost:
            notes.append(
                f'{task}: {lost} score(s) lack some of the {len(ids)} examples that the others '
                'share, '
                'and were left out.'
            )
        if cut:
            notes.append(
                f'{task}: {cut} score(s) were cut to the {len(ids)} examples that the others share.'
            )
        aligned[task] = kept
    return aligned, notes


def measure(
    members: Sequence[tuple[Score[What], np.ndarray]], *, accuracy: bool,
    resamples: int = RESAMPLES,
) -> dict[tuple[int, str, What], Estimate]:
    """Quality of each score of one task: weighted mean log-likelihood, or accuracy.

    Groups are drawn; a task of one group draws its examples instead, since one group cannot vary.
    """
    if accuracy:
        members = [(s, mask) for s, mask in members if s.examples.correct is not None]
    if not members:
        return {}
    named = [
        [label for label, m in zip(labels, mask, strict=True) if m]
        for labels, (_, mask) in zip(units(members), members, strict=True)
    ]
    labels = sorted({label for own in named for label in own})
    place = {label: n for n, label in enumerate(labels)}
    sums, weights = np.zeros((2, len(labels), len(members)))
    for m, (score, mask) in enumerate(members):
        ex = score.examples
        where = np.array([place[label] for label in named[m]])
        weight = ex.weight[mask]
        quality = ex.correct if accuracy else ex.log_likelihood
        assert quality is not None  # texts have no accuracy
        scores = quality[mask]
        sums[:, m] = np.bincount(where, weight * scores, minlength=len(labels))
        weights[:, m] = np.bincount(where, weight, minlength=len(labels))
    task = members[0][0].task
    values = sums.sum(0) / weights.sum(0)
    draws = resampled_means(sums, weights, name=f'task {task}', resamples=resamples)
    # One unit cannot vary: its interval is a point, and no comparison may rest on it.
    draws = values + (draws - values) * (expansion(len(labels)) if len(labels) > 1 else 1.0)
    return {
        (s.seed, s.task, s.model): Estimate(float(values[m]), draws[:, m])
        for m, (s, _) in enumerate(members)
    }


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """Plain mean, replicate by replicate."""
    value = float(np.mean([e.value for e in estimates]))
    return Estimate(value, np.mean([e.draws for e in estimates], axis=0))


def over_seeds(by_seed: Mapping[int, Estimate]) -> Estimate:
    """Mean over seeds; from two seeds on, each replicate also draws S seeds with replacement.

    What the draw of seeds adds is scaled by sqrt(S / (S - 1)), so that few seeds do not look alike.
    """
    seeds = sorted(by_seed)
    if len(seeds) == 1:
        return by_seed[seeds[0]]
    draws_BS = np.stack([by_seed[s].draws for s in seeds], axis=1)
    resamples, count = draws_BS.shape
    picks = generator(f'seeds {seeds}').integers(count, size=(resamples, count))
    centre = draws_BS.mean(axis=1)
    drawn = np.take_along_axis(draws_BS, picks, axis=1).mean(axis=1)
    value = float(np.mean([by_seed[s].value for s in seeds]))
    return Estimate(value, centre + (drawn - centre) * (count / (count - 1)) ** 0.5)
