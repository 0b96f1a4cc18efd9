"""The answer of a recovery study in plain language, every sentence made from its numbers."""

from moe_jax.base.text import listed
from moe_jax.study.report.document import Section
from moe_jax.study.report.expert_count import names
from moe_jax.study.report.paired import Estimate
from moe_jax.study.report.recovery.standings import Finding, Ranking, Standing
from moe_jax.study.report.recovery.values import Records, Way


def share(estimate: Estimate) -> str:
    """'62% [+55%, +70%]'."""
    return f'{estimate.value:.0%} [{estimate.low:+.0%}, {estimate.high:+.0%}]'


def tied(ranking: Ranking) -> list[Standing]:
    """The recipes within noise of the best one."""
    return [s for s, gap in zip(ranking.recipes[1:], ranking.behind, strict=True)
            if gap is not None and gap.status == 'noise']


def headline(found: Finding) -> str:
    """One sentence that names the recipe that wins back most after each way of shrinking."""
    ranked = [r for r in found.rankings if r.recipes]
    if not ranked:
        return 'No answer yet: no shrunk model was recovered'
    parts = [(_first(ranking), f'after "{ranking.shrink}"') for ranking in ranked]
    if len({who for who, _ in parts}) == 1:
        return f'Most is won back by {parts[0][0]} {listed(where for _, where in parts)}'
    return f'Most is won back by {listed(f"{who} {where}" for who, where in parts)}'


def _first(ranking: Ranking) -> str:
    """The best recipe and those within noise of it, or the fact that no recipe helps measurably."""
    if ranking.recipes[0].won.status != 'better':
        return 'nothing measurable'
    level = [s.model.recipe for s in tied(ranking)]
    return ranking.recipes[0].model.recipe + (f' (level with {listed(level)})' if level
                                              else '')


def words(found: Finding, records: Records) -> tuple[Section, ...]:
    """The answer, then the cautions."""
    paragraphs = [f'{headline(found)}.']
    for ranking in found.rankings:
        paragraphs += _shrink_words(ranking, records)
    return (Section('Answer', tuple(paragraphs)),
            Section('What to keep in mind', (), tuple(_caveats(found, records))))


def _shrink_words(ranking: Ranking, records: Records) -> list[str]:
    lost = ranking.lost
    way = next((w for w in records.study.ways if w.label == ranking.shrink), None)
    said = (f'"{ranking.shrink}"{_how(way, records)} costs {lost.value:.3f} nats '
            f'{names.interval(lost)} per token before any training')
    if lost.status != 'better':
        return [f'{said}, which is within noise: there is no loss to win back.']
    if not ranking.recipes:
        return [f'{said}; no recipe was tried yet.']
    best, others = ranking.recipes[0], ranking.recipes[1:]
    assert best.share is not None  # as the loss is not within noise
    text = [f'{said}. Of this {best.model.recipe} wins back {share(best.share)}']
    level = tied(ranking)
    if level:
        near = (f'{s.model.recipe} ({s.share.value:.0%})' for s in level if s.share is not None)
        text.append(f', and within noise of it {listed(near)}')
    behind = [s for s in others if s not in level and s.share is not None]
    if behind:
        less = (f'{s.model.recipe} {share(s.share)}' for s in behind if s.share is not None)
        text.append(f'; measurably less {listed(less)}')
    nothing = [s.model.recipe for s in ranking.recipes if s.won.status == 'noise']
    worse = [s.model.recipe for s in ranking.recipes if s.won.status == 'worse']
    text.append('. ')
    if nothing:
        text.append(f'Within noise of no recovery at all: {listed(nothing)}. ')
    if worse:
        text.append(f'Worse than no recovery: {listed(worse)}. ')
    return [''.join(text).strip(), *_ceiling_words(ranking, records), *_elsewhere_words(ranking)]


def _how(way: Way | None, records: Records) -> str:
    if way is None:
        return ''
    what = (f'{way.experts} of {records.study.experts} experts kept' if way.experts is not None
            else f'{way.sparsity:.0%} of the weights inside the experts set to zero')
    return f' ({what} by {names.method(way.method)})'


def _ceiling_words(ranking: Ranking, records: Records) -> list[str]:
    top = ranking.ceiling
    if top is None or top.share is None:
        return []
    above = [s.model.recipe for s in ranking.recipes if s.share and s.share.low > 1]
    text = ''
    if above:
        text = (f'More than 100% means better on the task than the unshrunk model was '
                f'({listed(above)}): training on the task helps any model. ')
    text += (f'Given the same {records.study.ceiling}, the unshrunk model ends at '
             f'{share(top.share)} on this scale; ')
    short = ranking.recipes[0].short
    assert short is not None  # as the ceiling is there
    noise = ', within noise' if short.status == 'noise' else ''
    text += (f'against it {ranking.recipes[0].model.recipe} stands at {names.difference(short)} '
             f'nats{noise}.')
    return [text]


def _elsewhere_words(ranking: Ranking) -> list[str]:
    """The effect of the recipes on the text of other domains."""
    known = [s for s in ranking.recipes if s.elsewhere is not None]
    if not known or ranking.shrunk.elsewhere is None:
        return []
    known.sort(key=lambda s: s.elsewhere or 0.0)
    least, most = (f'{names.signed(s.elsewhere or 0.0)} ({s.model.recipe})'
                   for s in (known[0], known[-1]))
    return ['On the text of other domains the loss had changed by '
            f'{names.signed(ranking.shrunk.elsewhere)} nats when the model was just shrunk; '
            f'recovered on the task it stands from {least} to {most} against the unshrunk model.']


def _caveats(found: Finding, records: Records) -> list[str]:
    plan = records.study
    seeds = max((s.seeds for r in found.rankings for s in r.recipes), default=0)
    rest = ('the intervals cover the choice of held-out documents only, not the luck of '
            'pretraining' if seeds == 1 else 'each resample draws seeds as well as documents; few '
            'seeds make that part rough')
    out = [f'{names.counted(seeds, "seed")}: {rest}. Intervals are 95% percentile intervals of a '
           'paired bootstrap over groups of examples, widened where groups are few, and not '
           'corrected for the number of comparisons.']
    steps, tokens = (plan.setup.get(key, {}).get('recover') for key in ('steps', 'tokens'))
    if steps and tokens:
        out.append(f'Every recipe gets {steps} steps over the same {tokens:,} tokens of the task, '
                   'in the same order. A recipe with a teacher also runs the unshrunk model, so '
                   'equal tokens are not equal time.')
    if plan.rates and plan.tuning_rows:
        out.append('The peak learning rate of each recipe, way of shrinking and task is the one '
                   f'of {listed(f"{rate:g}" for rate in plan.rates)} with the lowest loss on '
                   f'{plan.tuning_rows} rows kept back from training, tried with the first seed '
                   'and kept for the others; the scored text had no part in it.')
    out += _edges(records)
    out.append('The teacher is the unshrunk model as it was pretrained. A recipe that learns from '
               'it alone can come close to it and not past it; one that sees the task\'s own next '
               'tokens can.')
    out += _zeros(found, records)
    out += [f'{task}: {note.split_note}' for task, note in plan.notes.items() if note.split_note]
    return out + list(found.notes) + list(records.problems)


def _edges(records: Records) -> list[str]:
    """The searches that ended at the lowest or the highest rate."""
    searches = [r for r in records.recovered if r.search]
    low = sum(r.rate == min(r.search) for r in searches if len(r.search) > 1)
    high = sum(r.rate == max(r.search) for r in searches if len(r.search) > 1)
    if not low + high:
        return []
    return [f'Of {len(searches)} searches {high} ended at the highest rate tried and {low} at the '
            'lowest: a rate beyond it may do better there.']


def _zeros(found: Finding, records: Records) -> list[str]:
    """Whether the zeroed weights were still zero after recovery."""
    ways = {w.label: w for w in records.study.ways if w.sparsity is not None}
    out = []
    for ranking in found.rankings:
        if ranking.shrink not in ways or not ranking.recipes:
            continue
        before, after = ranking.shrunk.zeros, [s.zeros for s in ranking.recipes]
        kept = min(after) >= before - 1e-6
        verb = 'stay so in every recovery' if kept else f'are down to {min(after):.1%} after some'
        out.append(f'"{ranking.shrink}": {before:.1%} of the weights inside the experts are zero, '
                   f'and {verb}.')
    return out
