"""The pruning factor at which shrinking stops paying, and how it moves with the pretrained size.

Letters: B resamples, K pruning factors of one pretrained size, Z experts pretrained.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_jax.study.report.contrast import Contrast
from moe_jax.study.report.paired import LEVEL


@dataclass(frozen=True, eq=False)
class Threshold:
    """Where shrinking a model of `experts` stops paying.

    `safe`: largest factor such that no factor up to it is worse (None: the smallest already is).
    `crossing`: factor at which the difference reaches zero, interpolated in log2(factor); 0 means
    before the smallest factor tried, inf beyond the largest. `low`, `high`: its 95% bootstrap
    interval, with the same meaning of 0 and inf.
    """

    experts: int
    factors: tuple[float, ...]
    safe: float | None
    crossing: float
    low: float
    high: float
    draws: np.ndarray

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest factor [B] that each replicate's crossing can stand for."""
        below, beyond = self.draws == 0, np.isinf(self.draws)
        low = np.where(beyond, self.factors[-1], self.draws)
        return low, np.where(below, self.factors[0], self.draws)


@dataclass(frozen=True)
class Move:
    """How the crossing factor moves from Z=`first` to Z=`last`: 'falls', 'rises' or 'noise'.

    'open': the crossing of one of them lies outside the factors tried, so nothing can be said.
    """

    first: int
    last: int
    status: str


def crossings(log2_factors: np.ndarray, differences_BK: np.ndarray) -> np.ndarray:
    """Factor [B] at which a row first falls below zero; 0: it starts below, inf: it never does."""
    negative = differences_BK < 0
    first = negative.argmax(axis=1)
    before = np.maximum(first - 1, 0)
    row = np.arange(len(differences_BK))
    high, low = differences_BK[row, before], differences_BK[row, first]
    share = np.where(high > low, high / np.where(high > low, high - low, 1.0), 0.0)
    crossing = log2_factors[before] + share * (log2_factors[first] - log2_factors[before])
    factors = np.where(first == 0, 0.0, np.exp2(crossing))
    return np.where(negative.any(axis=1), factors, np.inf)


def threshold(contrasts: Sequence[Contrast]) -> Threshold:
    """Threshold of one pretrained size, from its contrasts at every factor that was measured."""
    ordered = sorted(contrasts, key=lambda c: c.factor)
    factors = tuple(c.factor for c in ordered)
    safe = None
    for c in ordered:
        if c.status == 'worse':
            break
        safe = c.factor
    logs = np.log2(factors)
    values = np.array([[c.estimate.value for c in ordered]])
    draws = crossings(logs, np.stack([c.estimate.draws for c in ordered], axis=1))
    # Order statistics, because interpolating towards a censored replicate (inf) has no meaning.
    ranked = np.sort(draws)
    tail = (1 - LEVEL) / 2 * len(ranked)
    return Threshold(
        experts=ordered[0].model.experts,
        factors=factors,
        safe=safe,
        crossing=float(crossings(logs, values)[0]),
        low=float(ranked[math.floor(tail)]),
        high=float(ranked[len(ranked) - 1 - math.floor(tail)]),
        draws=draws,
    )


def move(first: Threshold, last: Threshold) -> Move:
    """Compares two crossings by replicate; a censored one counts where its bound decides."""
    low_1, high_1 = first.bounds
    low_2, high_2 = last.bounds
    needed = (1 + LEVEL) / 2
    # Bounds are open at a censored end, so meeting there decides; only an equal pair is a tie.
    differ = first.draws != last.draws
    falls = (high_2 <= low_1) & differ
    rises = (low_2 >= high_1) & differ
    known = falls | rises | ((low_1 == high_1) & (low_2 == high_2))
    if np.mean(falls) >= needed:
        return Move(first.experts, last.experts, 'falls')
    if np.mean(rises) >= needed:
        return Move(first.experts, last.experts, 'rises')
    return Move(first.experts, last.experts, 'noise' if np.mean(known) >= LEVEL else 'open')
