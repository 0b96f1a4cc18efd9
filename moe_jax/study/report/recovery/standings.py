"""The standing of each recipe: the share of the lost nats it wins back, with paired intervals.

Letters: B resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_jax.study.report.paired import Estimate, align, mean, measure, over_seeds
from moe_jax.study.report.recovery.values import NONE, UNSHRUNK, Outcome, Records, Recovered

Key = tuple[int, str, Outcome]
TEXT = 'lm-'  # before a domain's name in the name of the task on its text


@dataclass(frozen=True, eq=False)
class Standing:
    """One model, recovered or not, over the tasks and seeds where it and its references are known.

    loss: nats, mean over tasks and seeds. won: nats won back since shrinking; share: of those lost
    (None where the loss is within noise). short: nats below the unshrunk model that got the
    ceiling's recipe. elsewhere: change of the loss on the text of other domains since before
    shrinking. by_task: the share of each task alone.
    """

    model: Outcome
    loss: float
    won: Estimate
    share: Estimate | None
    short: Estimate | None
    elsewhere: float | None
    trained: float
    zeros: float
    seconds: float
    seeds: int
    by_task: dict[str, Estimate | None]


@dataclass(frozen=True, eq=False)
class Ranking:
    """One way of shrinking: nats lost, and its recipes by what they win back, the most first.

    behind: the best recipe minus each other one, in the same order. ceiling: the unshrunk model
    with the ceiling's recipe, measured as if it were a recipe (None: not measured yet).
    """

    shrink: str
    lost: Estimate
    shrunk: Standing
    recipes: tuple[Standing, ...]
    behind: tuple[Estimate | None, ...]
    ceiling: Standing | None


@dataclass(frozen=True, eq=False)
class Finding:
    """All findings of a report on a study."""

    unshrunk: float | None
    rankings: tuple[Ranking, ...]
    notes: tuple[str, ...]


def finding(records: Records) -> Finding:
    """Measures every model on the examples that all of a task share, and ranks the recipes."""
    aligned, notes = align(records.recovered)
    table: dict[Key, Estimate] = {}
    for members in aligned.values():
        table |= measure(members, accuracy=False)
    before = [-e.value for key, e in table.items() if key[2] == UNSHRUNK]
    shrinks = [way.label for way in records.study.ways]
    shrinks += sorted({m.shrink for _, _, m in table} - {*shrinks, NONE})
    rankings = (_ranking(records, table, shrink) for shrink in shrinks)
    return Finding(float(np.mean(before)) if before else None,
                   tuple(ranking for ranking in rankings if ranking is not None), tuple(notes))


def _ranking(records: Records, table: dict[Key, Estimate], shrink: str) -> Ranking | None:
    bare = Outcome(shrink, NONE)
    lost = _difference(table, UNSHRUNK, bare, _pairs(table, UNSHRUNK, bare))
    shrunk = _standing(records, table, bare, bare)
    if lost is None or shrunk is None:
        return None
    models = {m for _, _, m in table if m.shrink == shrink and m != bare}
    order = records.study.recipes
    standings = [s for m in sorted(models) if (s := _standing(records, table, m, bare))]
    standings.sort(key=lambda s: (-s.won.value, order.index(s.model.recipe)
                                  if s.model.recipe in order else len(order)))
    behind = [_difference(table, standings[0].model, s.model,
                          _pairs(table, standings[0].model, s.model)) for s in standings[1:]]
    ceiling = _standing(records, table, Outcome(NONE, records.study.ceiling), bare)
    return Ranking(shrink, lost, shrunk, tuple(standings),
                   tuple(behind), ceiling)


def _standing(records: Records, table: dict[Key, Estimate], model: Outcome, bare: Outcome
              ) -> Standing | None:
    """The standing of a model against the one just shrunk; None if they share nothing."""
    pairs = _pairs(table, model, bare, UNSHRUNK)
    if not pairs:
        return None
    top = Outcome(NONE, records.study.ceiling)
    cells = [r for r in records.recovered if r.model == model and (r.seed, r.task) in pairs]
    tasks = sorted({task for _, task in pairs})
    won = _difference(table, model, bare, pairs)
    assert won is not None  # as there are pairs
    return Standing(
        model=model,
        loss=-float(np.mean([table[seed, task, model].value for seed, task in pairs])),
        won=won,
        share=_share(table, model, bare, pairs),
        short=_difference(table, model, top, _pairs(table, model, top)),
        elsewhere=_elsewhere(records, cells),
        trained=float(np.mean([r.trained for r in cells])),
        zeros=float(np.mean([r.zeros for r in cells])),
        seconds=float(np.median([r.train_seconds for r in cells])),
        seeds=len({seed for seed, _ in pairs}),
        by_task={task: _share(table, model, bare, [p for p in pairs if p[1] == task])
                 for task in tasks},
    )


def _pairs(table: dict[Key, Estimate], *models: Outcome) -> list[tuple[int, str]]:
    """(seed, task) at which all of these models were measured."""
    measured = [{(seed, task) for seed, task, m in table if m == model} for model in models]
    return sorted(set.intersection(*measured))


def _difference(table: dict[Key, Estimate], model: Outcome, other: Outcome,
                pairs: Sequence[tuple[int, str]]) -> Estimate | None:
    """Log-likelihood of one minus that of the other, mean over tasks, each over its seeds."""
    by_task: dict[str, dict[int, Estimate]] = {}
    for seed, task in pairs:
        by_task.setdefault(task, {})[seed] = table[seed, task, model] - table[seed, task, other]
    return mean([over_seeds(seeds) for seeds in by_task.values()]) if by_task else None


def _share(table: dict[Key, Estimate], model: Outcome, bare: Outcome,
           pairs: Sequence[tuple[int, str]]) -> Estimate | None:
    """Nats won back over nats lost, replicate by replicate; None where the loss is within noise."""
    won = _difference(table, model, bare, pairs)
    lost = _difference(table, UNSHRUNK, bare, pairs)
    if won is None or lost is None or lost.status != 'better':
        return None
    # A few replicates may have a loss at or below zero, where the share has no meaning.
    draws = np.where(lost.draws > 0, won.draws / np.where(lost.draws > 0, lost.draws, 1), np.nan)
    value = won.value / lost.value
    return Estimate(value, np.where(np.isnan(draws), value, draws))


def _elsewhere(records: Records, cells: Sequence[Recovered]) -> float | None:
    """Mean loss on the domains that are not the task's, minus that of the unshrunk model."""
    before = {(r.seed, r.task): r.domains for r in records.recovered if r.model == UNSHRUNK}
    changes = [r.domains[d] - before[r.seed, r.task][d] for r in cells for d in r.domains
               if TEXT + d != r.task and d in before.get((r.seed, r.task), {})]
    return float(np.mean(changes)) if changes else None
