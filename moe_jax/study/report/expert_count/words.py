"""The answer in plain language, every sentence made from numbers and no stronger than they are."""

import math

from moe_jax.base.text import listed
from moe_jax.study.report.contrast import Contrast
from moe_jax.study.report.document import Section
from moe_jax.study.report.expert_count import names
from moe_jax.study.report.expert_count.caveats import caveats
from moe_jax.study.report.expert_count.methods import MANY, SIDE_BY_SIDE, lineup_words, rival_words
from moe_jax.study.report.expert_count.threshold import Move, Threshold
from moe_jax.study.report.expert_count.values import Model, Records, is_choice, scratch
from moe_jax.study.report.expert_count.verdict import Verdict


def safe_up_to(thresholds: tuple[Threshold, ...]) -> str:
    """'up to a factor of 4 from 16 and 32 experts, 2 from 8 and at no factor tried from 64'."""
    by_factor: dict[float | None, list[int]] = {}
    for t in thresholds:
        by_factor.setdefault(t.safe, []).append(t.experts)
    parts = []
    for safe in sorted(by_factor, key=lambda f: -(f or 0)):
        reach = 'at no factor tried' if safe is None else f'up to a factor of {names.ratio(safe)}'
        if parts and safe is not None:
            reach = names.ratio(safe)
        noun = '' if parts else ' experts'
        parts.append(f'{reach} from {listed(by_factor[safe])}{noun}')
    return listed(parts)


def headline(verdict: Verdict) -> str:
    """One sentence: the finding, or that there is none."""
    if not verdict.contrasts:
        return (
            'No answer yet: no shrunk model has a from-scratch model of its size to stand against'
        )
    name = names.method(verdict.method or '')
    statuses = {c.status for c in verdict.contrasts}
    tried = len(verdict.contrasts)
    only = f'at {names.arrow(verdict.contrasts[0].model)}'
    where = 'at every size tried' if tried > 1 else only
    if statuses == {'noise'}:
        return f'No measurable difference between shrinking with {name} and pretraining small'
    if statuses == {'better'}:
        return f'Shrinking with {name} beats pretraining small {where}'
    if statuses == {'worse'}:
        return f'Pretraining small beats shrinking with {name} {where}'
    better = sum(c.status == 'better' for c in verdict.contrasts)
    if 'worse' not in statuses:
        return (
            f'Shrinking with {name} never measurably loses, and wins in {better} of {tried} '
            'comparisons'
        )
    if any(t.safe is not None for t in verdict.thresholds):
        return f'Shrinking with {name} is not measurably worse {safe_up_to(verdict.thresholds)}'
    return f'Shrinking with {name} already loses at the smallest factor tried, from every size'


def _coverage(c: Contrast, records: Records) -> str:
    parts = []
    if len(c.tasks) < len(records.study.tasks):
        parts.append(f'{len(c.tasks)} of {len(records.study.tasks)} tasks')
    if len(c.seeds) < len(records.study.seeds):
        parts.append(f'{len(c.seeds)} of {len(records.study.seeds)} seeds')
    return f', over {listed(parts)}' if parts else ''


def _crossing(t: Threshold) -> str:
    first, last = names.ratio(t.factors[0]), names.ratio(t.factors[-1])

    def bound(value: float) -> str:
        if value == 0:
            return f'below {first}'
        return f'beyond {last}' if math.isinf(value) else names.ratio(value)

    if t.crossing == 0:
        point = f'The difference is below zero from the smallest factor tried ({first})'
    elif math.isinf(t.crossing):
        point = f'The difference stays at or above zero at every factor tried (up to {last})'
    else:
        point = f'The difference crosses zero near a factor of {bound(t.crossing)}'
    low, high = bound(t.low), bound(t.high)
    if low == high and (t.crossing == 0 or math.isinf(t.crossing)):
        return f'{point}, in at least 95% of the resamples.'
    if t.low == 0 and math.isinf(t.high):
        return f'{point}, but the resamples place the crossing anywhere, so it is not located.'
    return f'{point}; 95% interval of the crossing: {low} to {high}.'


def _size(t: Threshold, verdict: Verdict, records: Records) -> str:
    own = sorted(
        (c for c in verdict.contrasts if c.model.experts == t.experts), key=lambda c: c.factor
    )
    parts = [
        f'factor {names.ratio(c.factor)} ({names.arrow(c.model)}) {names.STATUS[c.status]}, '
        f'{names.difference(c.estimate)} nats{_coverage(c, records)}'
        for c in own
    ]
    if t.safe is None:
        reach = f'It loses already at {names.ratio(t.factors[0])}.'
    elif t.safe == t.factors[-1]:
        wins = all(c.status == 'better' for c in own)
        verb = 'It beats pretraining small' if wins else 'It is not measurably worse'
        tried = 'at every factor tried' if len(own) > 1 else 'at the one factor tried'
        reach = f'{verb} {tried}: threshold >= {names.ratio(t.safe)}.'
    else:
        reach = f'It is not measurably worse up to a factor of {names.ratio(t.safe)}.'
    wanted = {t.experts / g for g in records.study.keep.get(t.experts, ())}
    absent = [names.ratio(f) for f in sorted(wanted - set(t.factors))]
    gap = f' Not measured yet: factor {listed(absent)}.' if absent else ''
    return f'From {t.experts} experts: {"; ".join(parts)}. {reach} {_crossing(t)}{gap}'


def _moves(moves: tuple[Move, ...]) -> str:
    if not moves:
        return (
            'How the threshold moves with the number of pretrained experts cannot be said: '
            'it takes at least two pretrained sizes with measured factors.'
        )
    said = {
        'falls': 'the crossing factor falls',
        'rises': 'the crossing factor rises',
        'noise': 'its move is within noise',
        'open': 'no comparison is possible, as a crossing lies outside the factors tried',
    }
    by_status: dict[str, list[str]] = {}
    for m in moves:
        by_status.setdefault(m.status, []).append(f'from {m.first} to {m.last}')
    parts = [f'{listed(steps)} {said[status]}' for status, steps in by_status.items()]
    return f'How the threshold moves with the number of pretrained experts: {"; ".join(parts)}.'


def _budget(keep: int, verdict: Verdict) -> str:
    own = sorted(
        (c for c in verdict.contrasts if c.model.keep == keep), key=lambda c: -c.estimate.value
    )
    winners = [c for c in own if c.status == 'better']
    best = winners[0] if winners else own[0]
    others = listed(
        f'{names.arrow(c.model)} {names.STATUS[c.status]} ({names.signed(c.estimate.value)})'
        for c in own
        if c is not best
    )
    rest = f' Also tried: {others}.' if others else ''
    lead = f'With {keep} experts per layer at inference'
    start = f'from {best.model.experts} ({names.difference(best.estimate)} nats)'
    if winners:
        pick = ' and is the largest measured gain' if others and best is own[0] else ''
        return f'{lead}, shrinking {start} beats pretraining {keep}{pick}.{rest}'
    if best.status == 'noise':
        return (
            f'{lead}, no shrunk model is measurably better than pretraining {keep}; closest is '
            f'{start}.{rest}'
        )
    verb = 'every shrunk model is worse, the nearest' if others else 'shrinking is worse,'
    return f'{lead}, pretrain {keep}: {verb} {start}.{rest}'


def _unit(verdict: Verdict, records: Records) -> str:
    kinds = {is_choice(records, t) for c in verdict.contrasts for t in c.tasks}
    choice = (
        "nats per example of the right answer's log-probability among the options (choice tasks)"
    )
    text = 'nats per token (text tasks)'
    if kinds == {True, False}:
        return (
            f'{choice} and {text}, averaged over tasks with equal weight; the table also splits '
            'the two kinds'
        )
    return choice if kinds == {True} else text


def _kinds(verdict: Verdict) -> str | None:
    if not verdict.choice or not verdict.text:
        return None
    parts = []
    for label, contrasts in (('choice', verdict.choice), ('text', verdict.text)):
        parts.append(f'on the {label} tasks alone {names.tally([c.status for c in contrasts])}')
    return f'Of the comparisons by kind of task: {"; ".join(parts)}.'


def missing(records: Records) -> tuple[int, int]:
    """Cells of the from-scratch and headline models that are not recorded, and cells planned."""
    study = records.study
    method = names.headline(study.methods)
    pairs = [(z, g) for z, kept in study.keep.items() for g in kept]
    models = {scratch(z) for z in study.experts} | {scratch(g) for _, g in pairs}
    if method:
        models |= {Model(z, g, method) for z, g in pairs}
    planned = {(s, t, m) for s in study.seeds for t in study.tasks for m in models}
    done = {(s.seed, s.task, s.model) for s in records.scores}
    return len(planned - done), len(planned)


def words(verdict: Verdict, records: Records) -> tuple[Section, ...]:
    """The answer, the comparison of methods, what the numbers mean, and the tasks."""
    name = names.method(verdict.method or 'no method')
    answer = [f'{headline(verdict)}.']
    absent, planned = missing(records)
    if absent:
        answer.append(
            f'The study is not complete: {absent} of {planned} cells behind this answer are '
            'missing.'
        )
    if not verdict.contrasts:
        return (Section('Answer', tuple(answer)), *_methods(verdict), *_closing(verdict, records))
    answer.append(
        f'Each number is {name} minus the model pretrained at the same size, in '
        f'{_unit(verdict, records)}. '
        'Higher is better; 0.01 nats is about one per cent of probability.'
    )
    kinds = _kinds(verdict)
    if kinds:
        answer.append(kinds)
    if len(verdict.rivals) > MANY and verdict.lineups:
        answer.append(
            f'{name} is one of {len(verdict.rivals) + 1} methods; how they compare stands under '
            f'"{SIDE_BY_SIDE}".'
        )
    budgets = sorted({c.model.keep for c in verdict.contrasts})
    sections = [
        Section('Answer', tuple(answer), tuple(_budget(g, verdict) for g in budgets)),
        Section(
            'Threshold factor',
            (_moves(verdict.moves),),
            tuple(_size(t, verdict, records) for t in verdict.thresholds),
        ),
    ]
    if verdict.rivals:
        sections.append(Section('Methods', bullets=rival_words(verdict, name)))
    return (*sections, *_methods(verdict), *_closing(verdict, records))


def _methods(verdict: Verdict) -> tuple[Section, ...]:
    if not verdict.lineups:
        return ()
    return (Section(SIDE_BY_SIDE, bullets=tuple(lineup_words(x) for x in verdict.lineups)),)


def _closing(verdict: Verdict, records: Records) -> tuple[Section, ...]:
    sections = []
    if verdict.contrasts:
        sections.append(Section('How far to trust this', bullets=caveats(verdict, records)))
    if verdict.notes:
        sections.append(Section('Notes on the records', bullets=verdict.notes))
    tasks = []
    for task in records.study.tasks:
        note = records.study.notes.get(task)
        kind = 'choice' if is_choice(records, task) else 'text'
        parts = [kind]
        if note and note.examples is not None:
            parts.append(f'{note.examples} examples')
        if note and note.majority is not None:
            parts.append(f'commonest answer {100 * note.majority:.1f}%')
        split = f' {note.split_note}' if note and note.split_note else ' No split note recorded.'
        tasks.append(f'{task} ({", ".join(parts)}):{split}')
    if tasks:
        sections.append(Section('Tasks and splits', bullets=tuple(tasks)))
    return tuple(sections)
