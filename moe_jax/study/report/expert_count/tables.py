"""The tables of a report, as values.

The main ones have the form of table 2 of the UNCURL paper: one row per model ('scratch 8', 'UNCURL
32->8'), one column per task. Letters: Z experts pretrained, G experts left.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from moe_jax.study.report.contrast import Contrast, contrast
from moe_jax.study.report.contrast import Table as Estimates
from moe_jax.study.report.document import Cell, Table
from moe_jax.study.report.expert_count import names
from moe_jax.study.report.expert_count.lineup import Lineup, Loss, Standing
from moe_jax.study.report.expert_count.values import SCRATCH, Model, Records, is_choice, scratch
from moe_jax.study.report.expert_count.verdict import Verdict
from moe_jax.study.report.paired import Estimate

EMPTY = Cell(names.MISSING)


def models(records: Records) -> tuple[Model, ...]:
    """Rows of the main tables: the planned from-scratch and headline models, then the others."""
    study = records.study
    headline = names.headline(study.methods)
    pairs = [(z, g) for z, kept in study.keep.items() for g in kept]
    planned = {scratch(z) for z in study.experts} | {scratch(g) for _, g in pairs}
    planned |= {Model(z, g, headline) for z, g in pairs if headline}
    order = [SCRATCH, headline, *(m for m in study.methods if m != headline)]
    models = planned | {s.model for s in records.scores}
    return tuple(sorted(models, key=lambda m: (order.index(m.method), m.experts, -m.keep)))


def blocks(rows: Sequence[Model]) -> tuple[int, ...]:
    """Rows at which a new method begins."""
    return tuple(n for n in range(1, len(rows)) if rows[n].method != rows[n - 1].method)


def _cell(
    table: Estimates,
    model: Model,
    tasks: Sequence[str],
    show: Callable[[float], str],
    single: Sequence[str],
) -> Cell:
    """Own value (mean over tasks, then seeds) with the sign and interval against from scratch."""
    seeds = sorted({key[0] for key in table})
    complete = [
        np.mean([table[seed, t, model].value for t in tasks])
        for seed in seeds
        if all((seed, t, model) in table for t in tasks)
    ]
    if not complete:
        return EMPTY
    value = show(float(np.mean(complete)))
    if model.method == SCRATCH or set(tasks) & set(single):
        return Cell(value)
    difference = contrast(table, model, scratch(model.keep), tasks)
    if difference is None or len(difference.tasks) < len(tasks):
        return Cell(value)
    return Cell(f'{value} ({names.SIGNS[difference.status]})', _span(difference.estimate, show),
                difference.status)


def _span(estimate: Estimate, show: Callable[[float], str]) -> str:
    low, high = (f'{"" if v < 0 else "+"}{show(v)}' for v in (estimate.low, estimate.high))
    return f'[{low}, {high}]'


def nats(value: float) -> str:
    return f'{value:.3f}'


def _percent(value: float) -> str:
    return f'{100 * value:.1f}'


READ = (
    'In brackets, the sign of the difference to the from-scratch model of equal size (+ better, - '
    'worse, = within '
    'noise) and its 95% interval.'
)


def _by_task(
    title: str,
    table: Estimates,
    records: Records,
    tasks: Sequence[str],
    show: Callable[[float], str],
    note: str,
    single: Sequence[str],
) -> Table:
    rows = models(records)
    shared = tuple(t for t in tasks if t not in single)
    columns = [(task,) for task in tasks] + ([shared] if len(shared) > 1 else [])
    cells = tuple(
        (Cell(names.model(m)), *(_cell(table, m, column, show, single) for column in columns))
        for m in rows
    )
    heads = ('model', *tasks, *(('mean',) if len(shared) > 1 else ()))
    return Table(title, heads, cells, note, blocks(rows))


def quality(verdict: Verdict, records: Records) -> Table:
    """Log-likelihood of every model on every task after the full budget."""
    return _by_task(
        'Log-likelihood by task',
        verdict.quality,
        records,
        records.study.tasks,
        nats,
        f'Nats per example (choice tasks) or per token (text tasks); higher is better. {READ}',
        verdict.single,
    )


def accuracy(verdict: Verdict, records: Records) -> Table | None:
    """Accuracy on the choice tasks, the form of the paper; None without choice tasks."""
    tasks = [t for t in records.study.tasks if is_choice(records, t)]
    if not tasks:
        return None
    table = _by_task(
        'Accuracy by task',
        verdict.accuracy,
        records,
        tasks,
        _percent,
        f'Per cent. {READ}',
        verdict.single,
    )
    shares = [records.study.notes[t].majority if t in records.study.notes else None for t in tasks]
    baseline = tuple(EMPTY if s is None else Cell(_percent(s)) for s in shares)
    pad = (EMPTY,) * (len(table.columns) - 1 - len(tasks))
    rows = ((Cell('commonest answer'), *baseline, *pad), *table.rows)
    return Table(table.title, table.columns, rows, table.note, (1, *(n + 1 for n in table.rules)))


def answer(verdict: Verdict, records: Records) -> Table:
    """Difference to the equal-size from-scratch model by pretrained size and factor."""
    split = bool(verdict.choice) and bool(verdict.text)
    heads = ['shrunk', 'factor', 'all tasks']
    heads += ['choice tasks', 'text tasks'] if split else []
    heads += ['tasks', 'seeds']
    views = [verdict.contrasts, *((verdict.choice, verdict.text) if split else ())]
    rows, rules, before = [], [], None
    for z, kept in records.study.keep.items():
        for g in sorted(kept, reverse=True):
            if before not in (None, z):
                rules.append(len(rows))
            before = z
            thresholds = [_find(view, z, g) for view in views]
            tail = (EMPTY, EMPTY)
            if thresholds[0] is not None:
                tail = (Cell(str(len(thresholds[0].tasks))), Cell(str(len(thresholds[0].seeds))))
            lead = (Cell(f'{z}->{g}'), Cell(names.ratio(z / g)))
            rows.append((*lead, *(_gain(c) for c in thresholds), *tail))
    name = names.method(verdict.method or 'shrunk')
    note = (
        'Nats, mean over tasks; higher is better, 0 is equal. + better, - worse, = within noise '
        '(95%).'
    )
    return Table(
        f'{name} minus from scratch at equal size', tuple(heads), tuple(rows), note, tuple(rules)
    )


def _find(view: Sequence[Contrast], experts: int, keep: int) -> Contrast | None:
    return next((c for c in view if c.model[:2] == (experts, keep)), None)


def _gain(found: Contrast | None) -> Cell:
    if found is None:
        return EMPTY
    text = f'{names.signed(found.estimate.value)} ({names.SIGNS[found.status]})'
    return Cell(text, names.interval(found.estimate), found.status)


def methods(verdict: Verdict) -> dict[int, Table]:
    """Methods side by side, one table per pretrained size: lost at once, left after recovery."""
    lineups = verdict.lineups
    sizes = sorted({x.experts for x in lineups})
    made = {z: _methods([x for x in lineups if x.experts == z]) for z in sizes}
    if made:
        made[sizes[-1]] = replace(made[sizes[-1]], note=_legend(lineups))
    return made


def _legend(lineups: Sequence[Lineup]) -> str:
    note = (
        'Lost: nats right after shrinking, before any training, against the unshrunk model of the '
        'same seed and task (lower is better, below zero it gained; the two kinds of tasks apart). '
        'Below it, the lowest and highest over tasks and seeds, not an interval: of this stage '
        'records hold means only. '
        'After recovery: nats minus from scratch at equal size, mean over all tasks, with its sign '
        'and 95% interval (higher is better); sorted by it at '
        f'{min(x.keep for x in lineups)} experts.'
    )
    if any(s.final and not s.final_rank for x in lineups for s in x.standings):
        note += ' Numbers that stand on other tasks or seeds than most have no rank.'
    return note


def _methods(own: Sequence[Lineup]) -> Table:
    order = list(dict.fromkeys(s.model.method for x in own for s in x.standings))
    kinds = [k for k in ('text', 'choice') if any(getattr(s, k) for x in own for s in x.standings)]
    heads, columns = ['method'], []
    for lineup in own:
        arrow = f'{lineup.experts}->{lineup.keep}'
        by_method = {s.model.method: s for s in lineup.standings}
        cells = [_standing(by_method.get(m), lineup.kind, kinds) for m in order]
        columns += zip(*cells, strict=True)
        for kind in kinds:
            heads += [f'{arrow}: lost, {kind}', *(['rank'] if kind == lineup.kind else [])]
        heads += [f'{arrow}: after recovery', 'rank']
    rows = zip((Cell(names.method(m)) for m in order), *columns, strict=True)
    return Table(f'Methods from {own[0].experts} experts', tuple(heads), tuple(rows))


def _standing(standing: Standing | None, ranked: str, kinds: Sequence[str]) -> list[Cell]:
    """A method's cells at one Z -> G: losses, the ranked kind with its rank, then the final one."""
    standing = standing or Standing(Model(0, 0, ''))
    cells = []
    for kind in kinds:
        cells.append(_lost(standing.text if kind == 'text' else standing.choice))
        cells += [_rank(standing.loss_rank)] if kind == ranked else []
    return [*cells, _gain(standing.final), _rank(standing.final_rank)]


def _lost(loss: Loss | None) -> Cell:
    if loss is None:
        return EMPTY
    spread = f'{nats(loss.low)} to {nats(loss.high)}' if len(loss.cells) > 1 else ''
    return Cell(nats(loss.value), spread)


def _rank(rank: int | None) -> Cell:
    return EMPTY if rank is None else Cell(str(rank))
