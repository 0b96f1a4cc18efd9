"""The answer as numbers: shrinking against pretraining small at equal size, and against rival
methods.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from moe_jax.study.report.contrast import Contrast, Table, contrast
from moe_jax.study.report.expert_count import names
from moe_jax.study.report.expert_count.lineup import Lineup, lineups
from moe_jax.study.report.expert_count.threshold import Move, Threshold, move, threshold
from moe_jax.study.report.expert_count.values import Model, Records, is_choice, scratch
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


@dataclass(frozen=True, eq=False)
class Rival:
    """The headline method minus `method` at equal Z -> G: one contrast per pair, and their mean."""

    method: str
    pairs: tuple[Contrast, ...]
    overall: Estimate


@dataclass(frozen=True, eq=False)
class Verdict:
    """All findings of a report, built from records alone and independent of their order.

    `choice` and `text` are the contrasts over one kind of task; tasks in `single` have one example,
    so nothing is compared on them; `uninformative` tasks are at the level of the most common
    answer. `lineups` set many methods side by side.
    """

    method: str | None
    quality: Table
    accuracy: Table
    contrasts: tuple[Contrast, ...]
    choice: tuple[Contrast, ...]
    text: tuple[Contrast, ...]
    thresholds: tuple[Threshold, ...]
    moves: tuple[Move, ...]
    rivals: tuple[Rival, ...]
    lineups: tuple[Lineup, ...]
    uninformative: tuple[str, ...]
    single: tuple[str, ...]
    notes: tuple[str, ...]


def _rival(
    table: Table, headline: str, other: str, records: Records, tasks: Sequence[str]
) -> Rival | None:
    pairs = []
    for z, kept in records.study.keep.items():
        for g in kept:
            pair = contrast(table, Model(z, g, headline), Model(z, g, other), tasks)
            if pair is not None:
                pairs.append(pair)
    if not pairs:
        return None
    return Rival(other, tuple(pairs), mean([p.estimate for p in pairs]))


def _uninformative(records: Records, accuracy: Table) -> tuple[str, ...]:
    """Choice tasks on which no model measurably beats always giving the most common answer.

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
    contrasts = [
        contrast(table, Model(z, g, method), scratch(g), tasks)
        for z, kept in records.study.keep.items()
        for g in kept
    ]
    return tuple(c for c in contrasts if c is not None)


def _notes(groups: dict[str, int], single: Sequence[str]) -> list[str]:
    notes = []
    for task, count in groups.items():
        if task in single:
            notes.append(
                f'{task}: one example cannot vary, so no comparison or mean rests on this task.'
            )
        elif count == 1:
            notes.append(
                f'{task}: all examples are one group, so they were resampled one by one; its '
                'intervals are too narrow if they depend on each other.'
            )
        elif count < 10:
            notes.append(f'{task}: only {count} groups, so its intervals are rough.')
    return notes


def verdict(records: Records, *, resamples: int = RESAMPLES) -> Verdict:
    """Computes every comparison of the report, from one shared set of resamples."""
    aligned, fits = align(records.scores)
    quality: dict[Key, Estimate] = {}
    accuracy: dict[Key, Estimate] = {}
    groups: dict[str, int] = {}
    single = []
    for task, members in aligned.items():
        groups[task] = max(len(set(s.examples.groups)) for s, _ in members)
        if max(int(mask.sum()) for _, mask in members) == 1:
            single.append(task)
        quality |= measure(members, accuracy=False, resamples=resamples)
        accuracy |= measure(members, accuracy=True, resamples=resamples)
    study = records.study
    headline = names.headline(study.methods)
    tasks = [t for t in study.tasks if t not in single]
    kinds = {kind: [t for t in tasks if is_choice(records, t) == kind] for kind in (True, False)}
    everything = _against_scratch(quality, records, headline, tasks)
    sizes = sorted({c.model.experts for c in everything})
    thresholds = [threshold([c for c in everything if c.model.experts == z]) for z in sizes]
    steps = list(pairwise(thresholds))
    if len(thresholds) > 2:
        steps.append((thresholds[0], thresholds[-1]))
    others = [m for m in study.methods if m != headline]
    rivals = [_rival(quality, headline, m, records, tasks) for m in others] if headline else []
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
        lineups=lineups(quality, records, tasks),
        uninformative=_uninformative(records, accuracy),
        single=tuple(single),
        notes=(*records.problems, *fits, *_notes(groups, single)),
    )
