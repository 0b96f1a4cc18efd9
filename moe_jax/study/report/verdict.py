"""The answer as numbers: shrinking against pretraining small at equal size, and against rival
methods.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from moe_jax.study.report import names
from moe_jax.study.report.contrast import Contrast, Table, contrast
from moe_jax.study.report.paired import (
    LEVEL,
    RESAMPLES,
    Estimate,
    Key,
    align,
    mean,
    measure,
    over_seeds,
)
from moe_jax.study.report.threshold import Move, Threshold, move, threshold
from moe_jax.study.report.values import Model, Records, is_choice, scratch


@dataclass(frozen=True, eq=False)
class Rival:
    """The headline method minus `method` at equal Z -> G: one contrast per pair, and their mean."""

    method: str
    pairs: tuple[Contrast, ...]
    overall: Estimate


@dataclass(frozen=True, eq=False)
class Verdict:
    """Everything a reader is told: built from records alone, and the same for any order of them."""

    method: str | None
    quality: Table
    accuracy: Table
    contrasts: tuple[Contrast, ...]
    choice: tuple[Contrast, ...]
    text: tuple[Contrast, ...]
    thresholds: tuple[Threshold, ...]
    moves: tuple[Move, ...]
    rivals: tuple[Rival, ...]
    uninformative: tuple[str, ...]
    notes: tuple[str, ...]


def _rival(table: Table, headline: str, other: str, records: Records) -> Rival | None:
    pairs = []
    for z, kept in records.study.keep.items():
        for g in kept:
            tasks = records.study.tasks
            found = contrast(table, Model(z, g, headline), Model(z, g, other), tasks)
            if found is not None:
                pairs.append(found)
    if not pairs:
        return None
    return Rival(other, tuple(pairs), mean([p.estimate for p in pairs]))


def _uninformative(records: Records, accuracy: Table) -> tuple[str, ...]:
    """Choice tasks on which no model is measurably above always giving the commonest answer.

    The bar rises with the number of models (Bonferroni): the best of many is above by luck alone.
    """
    tasks = []
    for task in records.study.tasks:
        note = records.study.notes.get(task)
        by_model: dict[Model, dict[int, Estimate]] = {}
        for (seed, name, model), estimate in accuracy.items():
            if name == task:
                by_model.setdefault(model, {})[seed] = estimate
        if note is None or note.majority is None or not by_model:
            continue
        tail = (1 - LEVEL) / 2 / len(by_model)
        best = max(float(np.quantile(over_seeds(e).draws, tail)) for e in by_model.values())
        if best <= note.majority:
            tasks.append(task)
    return tuple(tasks)


def _against_scratch(
    table: Table, records: Records, method: str | None, tasks: Sequence[str]
) -> tuple[Contrast, ...]:
    if method is None:
        return ()
    found = [
        contrast(table, Model(z, g, method), scratch(g), tasks)
        for z, kept in records.study.keep.items()
        for g in kept
    ]
    return tuple(c for c in found if c is not None)


def _notes(records: Records, fits: Sequence[str]) -> tuple[str, ...]:
    groups: dict[str, int] = {}
    for score in records.scores:
        groups[score.task] = max(groups.get(score.task, 0), len(set(score.examples.groups)))
    few = []
    for task in records.study.tasks:
        if groups.get(task) == 1:
            few.append(
                f'{task}: all examples are one group, so they were resampled one by one; its '
                'intervals '
                'are too narrow if they depend on each other.'
            )
        elif groups.get(task, 10) < 10:
            few.append(f'{task}: only {groups[task]} groups, so its intervals are rough.')
    return (*records.problems, *fits, *few)


def verdict(records: Records, *, resamples: int = RESAMPLES) -> Verdict:
    """Computes every comparison of the report, from one shared set of resamples."""
    aligned, fits = align(records.scores)
    quality: dict[Key, Estimate] = {}
    accuracy: dict[Key, Estimate] = {}
    for members in aligned.values():
        quality |= measure(members, accuracy=False, resamples=resamples)
        accuracy |= measure(members, accuracy=True, resamples=resamples)
    study = records.study
    headline = names.headline(study.methods)
    kinds = {
        kind: [t for t in study.tasks if is_choice(records, t) == kind] for kind in (True, False)
    }
    everything = _against_scratch(quality, records, headline, study.tasks)
    sizes = sorted({c.model.experts for c in everything})
    thresholds = [threshold([c for c in everything if c.model.experts == z]) for z in sizes]
    steps = list(pairwise(thresholds))
    if len(thresholds) > 2:
        steps.append((thresholds[0], thresholds[-1]))
    others = [m for m in study.methods if m != headline]
    rivals = [_rival(quality, headline, m, records) for m in others] if headline else []
    return Verdict(
        method=headline,
        quality=quality,
        accuracy=accuracy,
        contrasts=everything,
        choice=_against_scratch(quality, records, headline, kinds[True]),
        text=_against_scratch(quality, records, headline, kinds[False]),
        thresholds=tuple(thresholds),
        moves=tuple(move(a, b) for a, b in steps),
        rivals=tuple(r for r in rivals if r is not None),
        uninformative=_uninformative(records, accuracy),
        notes=_notes(records, fits),
    )
