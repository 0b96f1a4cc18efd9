"""Sentences that compare methods: each rival of the headline method, or a line-up of many."""

from moe_jax.base.text import listed
from moe_jax.study.report.expert_count import names
from moe_jax.study.report.expert_count.lineup import (
    Agreement,
    Cells,
    Lineup,
    Standing,
    covered,
    shared,
)
from moe_jax.study.report.expert_count.verdict import Rival, Verdict

MANY = 6  # rivals up to which each has a sentence of its own
SIDE_BY_SIDE = 'Methods side by side'
SURE = 0.05  # chance below which two orders are called related
SHOWN = 3  # methods named at the top of an order


def _rival(rival: Rival, name: str, lead: str = '') -> str:
    statuses = [p.status for p in rival.pairs]
    verb = {
        'better': f'{name} is better',
        'worse': f'{name} is worse',
        'noise': 'the difference is within noise',
    }[rival.overall.status]
    pairs = listed(names.arrow(p.model) for p in rival.pairs)
    return (
        f'{lead}{name} against {names.method(rival.method)} at equal size ({pairs}): {verb}, '
        f'{names.difference(rival.overall)} nats on average; one by one, {names.tally(statuses)}.'
    )


def _cells(rival: Rival) -> Cells:
    """Seeds and tasks of every pair; the pair is written into the task's name."""
    return frozenset(
        (seed, f'{names.arrow(c.model)} {task}') for c in rival.pairs for seed, task in covered(c)
    )


def rival_words(verdict: Verdict, name: str) -> tuple[str, ...]:
    """A sentence per rival of the headline method; of many, only the best and the worst.

    Best and worst are found among those on equal tasks and seeds.
    """
    rivals = verdict.rivals
    if len(rivals) <= MANY or not verdict.lineups:
        return tuple(_rival(r, name) for r in rivals)
    equal = shared({r.method: _cells(r) for r in rivals})
    ordered = sorted((r for r in rivals if r.method in equal), key=lambda r: r.overall.value)
    short = len(rivals) - len(ordered)
    rest = (
        f' Not ranked here, as on fewer or other tasks: {names.counted(short, "method")}.'
        if short
        else ''
    )
    return (
        f'{name} against {len(rivals)} other methods at equal size, on average over sizes: '
        f'{names.tally([r.overall.status for r in rivals])}. Each has a row under '
        f'"{SIDE_BY_SIDE}".{rest}',
        _rival(ordered[0], name, 'Best of the others: '),
        _rival(ordered[-1], name, 'Worst of the others: '),
    )


def _name(standing: Standing) -> str:
    return names.method(standing.model.method)


def _at_once(lineup: Lineup) -> str:
    """The methods that lose least and most before any training."""
    ranked = lineup.by_loss()
    if not ranked:
        return 'what each method loses right after shrinking is not recorded for enough of them.'

    def said(standing: Standing) -> str:
        loss = lineup.loss(standing)
        assert loss is not None  # as it has a rank
        return f'{_name(standing)} ({loss.value:.3f})'

    top = ranked[: min(SHOWN, len(ranked) - 1)]
    verb = 'loses' if len(top) == 1 else 'lose'
    return (
        f'right after shrinking {listed(map(said, top))} {verb} the fewest nats on the '
        f'{lineup.kind} tasks, {said(ranked[-1])} the most.'
    )


def _recovered(lineup: Lineup) -> str:
    """The best and last method after recovery, and how many are not measurably worse."""
    ranked = lineup.by_final()
    if not ranked:
        return 'After recovery too few methods can be compared.'
    first, last = ranked[0], ranked[-1]
    assert first.final is not None and last.final is not None  # as they have a rank
    tied = sum(c.status == 'noise' for c in lineup.behind)
    near = f'{tied or "none"} of the {len(lineup.behind)} others'
    return (
        f'After recovery {_name(first)} is best '
        f'({names.difference(first.final.estimate)} against from scratch), {near} within noise of '
        f'it, and {_name(last)} last ({names.signed(last.final.estimate.value)}).'
    )


def _order(found: Agreement | None) -> str:
    """Whether recovery keeps the order; no more than the correlation can carry."""
    if found is None:
        return ''
    number = f'Spearman correlation {found.correlation:+.2f} over {found.methods} methods'
    if found.chance >= SURE:
        return f' The two orders are not measurably related ({number}).'
    if found.correlation > 0:
        return f' Who does well at once tends to do well after recovery ({number}).'
    return f' Recovery tends to turn the order round ({number}).'


def _unranked(lineup: Lineup) -> str:
    short = [_name(s) for s in lineup.standings if s.final and s.final_rank is None]
    if not short:
        return ''
    verb = 'stands' if len(short) == 1 else 'stand'
    return (
        f' {listed(short)} {verb} on other tasks or seeds than most, and so without a rank.'
    )


def lineup_words(lineup: Lineup) -> str:
    """The finding at one Z -> G: best at once, best after recovery, and whether the order keeps."""
    return (
        f'{lineup.experts}->{lineup.keep}: {_at_once(lineup)} {_recovered(lineup)}'
        f'{_order(lineup.agreement)}{_unranked(lineup)}'
    )
