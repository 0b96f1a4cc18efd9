"""Many methods at one size: nats lost right after shrinking and after recovery.

Letters: G experts left, M methods, Z experts pretrained.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
from scipy import stats

from moe_jax.study.report.contrast import Contrast, Table, contrast
from moe_jax.study.report.expert_count.values import SCRATCH, Model, Records, is_choice, scratch
from moe_jax.study.report.paired import Key

FEWEST = 3  # methods that make a comparison of many
EXACT = 7  # up to so many methods, every order is tried for the chance of a correlation

Cells = frozenset[tuple[int, str]]


@dataclass(frozen=True)
class Loss:
    """Nats lost by being shrunk, before any training: mean over `cells`, lowest and highest one."""

    value: float
    low: float
    high: float
    cells: Cells


@dataclass(frozen=True, eq=False)
class Standing:
    """One method at one Z -> G; values that are not recorded are None.

    `final` is its quality after the full budget minus from scratch at equal size. Ranks start at 1;
    a number from other tasks or seeds than most methods' has no rank.
    """

    model: Model
    text: Loss | None = None
    choice: Loss | None = None
    final: Contrast | None = None
    loss_rank: int | None = None
    final_rank: int | None = None


@dataclass(frozen=True)
class Agreement:
    """Spearman correlation of two orders of `methods`, and its chance if they were unrelated."""

    correlation: float
    chance: float
    methods: int


@dataclass(frozen=True, eq=False)
class Lineup:
    """All methods at Z -> G, in the order that every lineup of a report shares.

    `kind` ('text' or 'choice') is the kind of tasks whose losses are ranked; `behind` is the best
    method after recovery minus each other one that has a rank.
    """

    experts: int
    keep: int
    kind: str
    standings: tuple[Standing, ...]
    agreement: Agreement | None
    behind: tuple[Contrast, ...]

    def loss(self, standing: Standing) -> Loss | None:
        return standing.text if self.kind == 'text' else standing.choice

    def by_loss(self) -> list[Standing]:
        """Those with a rank right after shrinking, least loss first."""
        return sorted((s for s in self.standings if s.loss_rank), key=lambda s: s.loss_rank or 0)

    def by_final(self) -> list[Standing]:
        """Those with a rank after recovery, best first."""
        return sorted((s for s in self.standings if s.final_rank), key=lambda s: s.final_rank or 0)


def shrunk_losses(records: Records, table: Table) -> dict[Key, float]:
    """Log-likelihood of the unshrunk model minus the shrunk one's, of the same seed and task.

    Both before any training on the task; scores that `table` leaves out have none.
    """
    at_once = {
        key: stage.log_likelihood
        for s in records.scores
        if (key := (s.seed, s.task, s.model)) in table
        for stage in s.stages
        if stage.name == 'shrunk'
    }
    return {
        (seed, task, model): full - value
        for (seed, task, model), value in at_once.items()
        if model.method != SCRATCH
        and (full := at_once.get((seed, task, scratch(model.experts)))) is not None
    }


def _loss(losses: Mapping[Key, float], model: Model, tasks: Sequence[str]) -> Loss | None:
    matching = {(s, t): v for (s, t, m), v in losses.items() if m == model and t in tasks}
    if not matching:
        return None
    values = list(matching.values())
    return Loss(float(np.mean(values)), min(values), max(values), frozenset(matching))


def shared(cells: Mapping[str, Cells]) -> set[str]:
    """Names with the same cells as most names (ties: the larger set, then the first)."""
    votes = Counter(cells.values())
    most = min(votes, key=lambda c: (-votes[c], -len(c), sorted(c)), default=None)
    return {name for name, own in cells.items() if own == most}


def covered(found: Contrast) -> Cells:
    """The seeds and tasks of a contrast."""
    return frozenset((seed, task) for seed in found.seeds for task in found.tasks)


def _ranks(values: Mapping[str, float], cells: Mapping[str, Cells]) -> dict[str, int]:
    """Ranks, 1 for the highest value, among names with the same cells; none if no cells agree."""
    ranked = sorted(shared(cells))
    if len(ranked) < 2:
        return {}
    order = stats.rankdata([-values[name] for name in ranked], method='min')
    return dict(zip(ranked, map(int, order), strict=True))


def agreement(first: Sequence[float], second: Sequence[float]) -> Agreement | None:
    """Spearman correlation [M], [M]; None under three methods or where all are tied.

    Its chance is exact by all M! orders up to M = 7, where the t approximation fails.
    """
    count = len(first)
    if count < FEWEST or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    spearman: Any = stats.spearmanr(first, second)  # its stubs name no field of the result
    chance = float(spearman.pvalue)
    if count <= EXACT:
        one, other = stats.rankdata(first), stats.rankdata(second)
        sums = other[np.array(list(permutations(range(count))))] @ (one - one.mean())
        chance = float(np.mean(np.abs(sums) >= abs(other @ (one - one.mean())) - 1e-9))
    return Agreement(float(spearman.statistic), chance, count)


def _measured(
    table: Table,
    losses: Mapping[Key, float],
    records: Records,
    tasks: Sequence[str],
    pair: tuple[int, int],
) -> dict[str, Standing]:
    """Every method with anything recorded at one Z -> G, without ranks, in the study's order."""
    text, choice = ([t for t in tasks if is_choice(records, t) == kind] for kind in (False, True))
    standings = {}
    for method in records.study.methods:
        model = Model(*pair, method)
        parts = (
            _loss(losses, model, text),
            _loss(losses, model, choice),
            contrast(table, model, scratch(model.keep), tasks),
        )
        if any(part is not None for part in parts):
            standings[method] = Standing(model, *parts)
    return standings


def _behind(table: Table, standings: Sequence[Standing]) -> tuple[Contrast, ...]:
    """The best after recovery minus each other one that has a rank."""
    ranked = sorted((s for s in standings if s.final_rank), key=lambda s: s.final_rank or 0)
    behind = [contrast(table, ranked[0].model, s.model, s.final.tasks) for s in ranked[1:]
             if s.final is not None]
    return tuple(c for c in behind if c is not None)


def _lineup(table: Table, found: dict[str, Standing], kind: str) -> Lineup:
    lost = {m: x for m, s in found.items() if (x := s.text if kind == 'text' else s.choice)}
    last = {m: s.final for m, s in found.items() if s.final}
    first_ranks = _ranks(
        {m: -x.value for m, x in lost.items()}, {m: x.cells for m, x in lost.items()}
    )
    last_ranks = _ranks(
        {m: c.estimate.value for m, c in last.items()}, {m: covered(c) for m, c in last.items()}
    )
    standings = tuple(
        replace(s, loss_rank=first_ranks.get(m), final_rank=last_ranks.get(m))
        for m, s in found.items()
    )
    both = [(s.loss_rank, s.final_rank) for s in standings if s.loss_rank and s.final_rank]
    agreed = agreement([a for a, _ in both], [b for _, b in both])
    model = standings[0].model
    return Lineup(
        model.experts, model.keep, kind, standings, agreed, _behind(table, standings)
    )


def _place(standing: Standing) -> tuple[int, float]:
    """Sort key: the best after recovery first, then scores without a rank, then no score."""
    if standing.final is None:
        return (2, 0.0)
    return (int(standing.final_rank is None), -standing.final.estimate.value)


def lineups(table: Table, records: Records, tasks: Sequence[str]) -> tuple[Lineup, ...]:
    """One for each Z -> G at which three methods or more are recorded.

    All are in one order, that of the scores after recovery at the smallest G (of the largest Z).
    """
    losses = shrunk_losses(records, table)
    kind = 'choice' if all(is_choice(records, t) for t in tasks) else 'text'
    pairs = [(z, g) for z, kept in records.study.keep.items() for g in sorted(kept, reverse=True)]
    measured = [_measured(table, losses, records, tasks, pair) for pair in pairs]
    made = [_lineup(table, found, kind) for found in measured if len(found) >= FEWEST]
    if not made:
        return ()
    smallest = min(made, key=lambda x: (x.keep, -x.experts))
    places = {s.model.method: _place(s) for s in smallest.standings}

    def place(standing: Standing) -> tuple[int, float]:
        return places.get(standing.model.method, (3, 0.0))

    return tuple(replace(x, standings=tuple(sorted(x.standings, key=place))) for x in made)
