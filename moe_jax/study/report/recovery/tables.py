"""The tables of a recovery study."""

from moe_jax.study.report.document import Cell, Table
from moe_jax.study.report.expert_count import names
from moe_jax.study.report.paired import Estimate
from moe_jax.study.report.recovery.standings import Finding, Ranking, Standing
from moe_jax.study.report.recovery.values import NONE, Outcome, Records, Recovered

GAP = Cell(names.MISSING)


def percent(estimate: Estimate | None) -> Cell:
    """'62%' with its interval, better or worse than no recovery."""
    if estimate is None:
        return GAP
    detail = f'[{estimate.low:+.0%}, {estimate.high:+.0%}]'
    return Cell(f'{estimate.value:.0%} ({names.SIGNS[estimate.status]})', detail, estimate.status)


def nats(estimate: Estimate | None) -> Cell:
    """Signed nats with their interval."""
    if estimate is None:
        return GAP
    text = f'{names.signed(estimate.value)} ({names.SIGNS[estimate.status]})'
    return Cell(text, names.interval(estimate), estimate.status)


def answer(ranking: Ranking, found: Finding, records: Records) -> Table:
    """One way of shrinking: every recipe with the share it wins back and its cost."""
    size = next((p.parameters for p in records.pretrains if p.parameters), None)
    rows: list[tuple[Cell, ...]] = [
        (Cell('unshrunk'), _loss(found.unshrunk), Cell('100%'), _before(ranking),
         Cell('+0.000'), GAP, GAP)]
    if ranking.ceiling is not None:
        rows.append(_row(f'unshrunk, {records.study.ceiling}', ranking.ceiling, size))
    rows.append((Cell('just shrunk'), _loss(ranking.shrunk.loss), Cell('0%'),
                 nats(ranking.shrunk.short), _elsewhere(ranking.shrunk), GAP, GAP))
    first = len(rows)
    rows += [_row(s.model.recipe, s, size) for s in ranking.recipes]
    return Table(
        f'{ranking.shrink}: what each recipe wins back',
        ('recipe', 'loss', 'won back', 'against ceiling', 'other text', 'trained', 'seconds'),
        tuple(rows),
        note='Loss: nats per token on held-out text of the task, mean over tasks and seeds, lower '
        'is better. Won back: of the nats that shrinking lost, 100% being the unshrunk model as it '
        'was; + better than no recovery, - worse, = within noise (95%). Against ceiling: '
        'log-likelihood minus that of the unshrunk model with the same '
        f'{records.study.ceiling}. Other text: change of '
        'the loss on the held-out text of the other domains since before shrinking, without an '
        'interval. Trained: how many numbers, and as a share of the unshrunk model\'s. Seconds: '
        'median over runs, compiling included where a run had to.',
        rules=(first,),
    )


def by_task(ranking: Ranking, records: Records) -> Table | None:
    """The shares won back task by task."""
    tasks = [t for t in records.study.tasks if any(t in s.by_task for s in ranking.recipes)]
    if len(tasks) < 2:
        return None
    rows = [(Cell(s.model.recipe), *(percent(s.by_task.get(task)) for task in tasks))
            for s in ranking.recipes]
    return Table(f'{ranking.shrink}: lost nats won back by task', ('recipe', *tasks), tuple(rows))


def rates(records: Records) -> Table | None:
    """The loss of each rate on the rows kept back, and the chosen rate."""
    tried = [r for r in records.recovered if r.search]
    if not tried:
        return None
    shown = sorted({rate for r in tried for rate in r.search})
    shrinks, recipes = [NONE, *(w.label for w in records.study.ways)], list(records.study.recipes)

    def place(r: Recovered) -> tuple:
        places = [known.index(name) if name in known else len(known) for known, name in
                 ((shrinks, r.model.shrink), (recipes, r.model.recipe))]
        return (r.task, *places, r.model, r.seed)

    rows = [(Cell(f'{_shrunk(r.model)}: {r.model.recipe}, {r.task}'),
             *(_tried(r, rate) for rate in shown)) for r in sorted(tried, key=place)]
    return Table(
        'The search for each rate', ('what is trained', *(f'{rate:g}' for rate in shown)),
        tuple(rows),
        note='Loss on rows kept back from training, nats per token; * the rate chosen.')


def pretrained(records: Records) -> Table | None:
    """Held-out loss of the pretrained models by domain, one row a seed."""
    if not records.pretrains:
        return None
    domains = sorted({d for p in records.pretrains for d in p.domains})
    rows = [(Cell(str(p.seed)), Cell(names.millions(p.parameters)), Cell(names.millions(p.tokens)),
             *(_loss(p.domains.get(d)) for d in domains)) for p in records.pretrains]
    return Table('Pretrained models', ('seed', 'parameters', 'tokens', *domains), tuple(rows),
                 note='Held-out loss of each domain in nats per token, before any shrinking.')


def _row(label: str, s: Standing, size: int | None) -> tuple[Cell, ...]:
    share = f'{s.trained / size:.1%}' if size else ''
    return (Cell(label), _loss(s.loss), percent(s.share), nats(s.short), _elsewhere(s),
            Cell(f'{s.trained:,.0f}', share), Cell(f'{s.seconds:.1f}'))


def _before(ranking: Ranking) -> Cell:
    """The unshrunk model before training, against the one trained equally."""
    return nats(None if ranking.ceiling is None else ranking.lost - ranking.ceiling.won)


def _loss(value: float | None) -> Cell:
    return GAP if value is None else Cell(f'{value:.3f}')


def _elsewhere(s: Standing) -> Cell:
    return GAP if s.elsewhere is None else Cell(names.signed(s.elsewhere))


def _tried(r: Recovered, rate: float) -> Cell:
    if rate not in r.search:
        return GAP
    loss = r.search[rate]
    text = 'diverged' if loss is None else f'{loss:.3f}'
    return Cell(f'{text} *' if rate == r.rate else text)


def _shrunk(model: Outcome) -> str:
    return 'unshrunk' if model.shrink == NONE else model.shrink
