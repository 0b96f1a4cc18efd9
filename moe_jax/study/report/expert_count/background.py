"""Tables behind the answer: recovery by stage, the pretrained models, text kept, and times."""

import numpy as np

from moe_jax.study.report.document import Cell, Table
from moe_jax.study.report.expert_count import names
from moe_jax.study.report.expert_count.tables import EMPTY, blocks, models, nats
from moe_jax.study.report.expert_count.values import SCRATCH, Model, Records, scratch


def stage_gaps(records: Records, model: Model) -> dict[str, float]:
    """Log-likelihood of each stage minus the finished from-scratch model's, mean over cells.

    Only cells that have every stage of the model count, so that stages stand on the same cells.
    """
    final = {
        (s.seed, s.task): s.stages[-1].log_likelihood
        for s in records.scores
        if s.model == scratch(model.keep) and s.stages
    }
    cells = [s for s in records.scores if s.model == model and (s.seed, s.task) in final]
    wanted = {stage.name for s in cells for stage in s.stages}
    rows = [
        {x.name: x.log_likelihood - final[s.seed, s.task] for x in s.stages}
        for s in cells
        if {stage.name for stage in s.stages} == wanted
    ]
    return {name: float(np.mean([row[name] for row in rows])) for name in wanted} if rows else {}


def stage_names(records: Records) -> tuple[str, ...]:
    """Stages of shrunk models in the order of the recovery, unknown ones last."""
    present = {stage.name for s in records.scores if s.model.method != SCRATCH
               for stage in s.stages}
    known = [name for name in names.STAGES if name in present]
    return (*known, *sorted(present - set(known)))


def recovery(records: Records) -> Table | None:
    """Quality at each stage of the recovery, relative to from scratch at equal size."""
    stages = stage_names(records)
    rows = [m for m in models(records) if m.method != SCRATCH]
    gaps = {m: stage_gaps(records, m) for m in rows}
    rows = [m for m in rows if gaps[m]]
    if not rows:
        return None
    cells = tuple(
        (
            Cell(names.model(m)),
            *(Cell(names.signed(gaps[m][s])) if s in gaps[m] else EMPTY for s in stages),
        )
        for m in rows
    )
    return Table(
        'Before and after recovery',
        ('model', *(names.STAGES.get(s, s) for s in stages)),
        cells,
        'Log-likelihood in nats minus that of the finished from-scratch model of equal size, mean '
        'over tasks '
        'and seeds. Stages are recorded as means only, so there are no intervals here.',
        blocks(rows),
    )


def pretrained(records: Records) -> Table | None:
    """Size and held-out loss of the pretrained models, mean over seeds."""
    if not records.pretrains:
        return None
    domains = sorted({d for p in records.pretrains for d in p.domains})
    rows = []
    for experts in records.study.experts:
        own = [p for p in records.pretrains if p.experts == experts]
        losses = [[p.domains[d] for p in own if d in p.domains] for d in domains]
        size = own[0] if own else None
        rows.append(
            (
                Cell(str(experts)),
                Cell(names.millions(size.parameters if size else None)),
                Cell(names.millions(size.active if size else None)),
                Cell(names.millions(size.tokens if size else None)),
                *(Cell(nats(float(np.mean(x)))) if x else EMPTY for x in losses),
                Cell(str(len(own))),
            )
        )
    heads = ('experts', 'parameters', 'active', 'tokens', *domains, 'seeds')
    note = 'Held-out loss per domain in nats per token, mean over seeds; lower is better.'
    return Table('Pretrained models', heads, tuple(rows), note)


def heldout(records: Records) -> Table | None:
    """Held-out loss of the finished models, mean over tasks and seeds."""
    domains = sorted({d for s in records.scores for d in s.domains})
    if not domains:
        return None
    rows = models(records)
    losses = {
        (m, d): [s.domains[d] for s in records.scores if s.model == m and d in s.domains]
        for m in rows
        for d in domains
    }
    cells = tuple(
        (
            Cell(names.model(m)),
            *(Cell(nats(float(np.mean(x)))) if (x := losses[m, d]) else EMPTY for d in domains),
        )
        for m in rows
    )
    note = (
        'Held-out loss in nats per token once a model is fine-tuned to a task, mean over the tasks '
        'and seeds recorded; lower is better.'
    )
    return Table('Text after the full budget', ('model', *domains), cells, note, blocks(rows))


def timings(records: Records) -> Table | None:
    """Wall-clock of the cells and of a forward pass: the only table that depends on the machine."""
    rows = []
    spent = {
        'pretraining': [p.seconds for p in records.pretrains],
        'shrinking, recovery and scoring': [s.seconds for s in records.scores],
    }
    for label, seconds in spent.items():
        if seconds:
            rows.append(
                (
                    Cell(label),
                    Cell(str(len(seconds))),
                    Cell(f'{np.sum(seconds):.0f} s'),
                    Cell(f'{np.median(seconds):.1f} s'),
                )
            )
    for experts, rounds in latencies(records).items():
        rows.append(
            (
                Cell(f'forward pass, {experts} experts'),
                Cell(str(len(rounds))),
                EMPTY,
                Cell(f'{np.median(rounds):.2f} ms', f'[{min(rounds):.2f}, {max(rounds):.2f}]'),
            )
        )
    if not rows:
        return None
    note = (
        'In square brackets the fastest and slowest round. Times depend on the machine and what '
        'else it ran.'
    )
    return Table('Timings', ('what', 'runs', 'total', 'median'), tuple(rows), note)


def latencies(records: Records) -> dict[int, tuple[float, ...]]:
    """Milliseconds of every round of every seed, by expert count."""
    rounds: dict[int, tuple[float, ...]] = {}
    for latency in records.latencies:
        for experts, values in latency.milliseconds.items():
            rounds[experts] = rounds.get(experts, ()) + values
    return dict(sorted(rounds.items()))
