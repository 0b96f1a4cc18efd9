"""Cautions about the numbers, derived from the numbers themselves."""

import statistics

from moe_jax.base.text import listed
from moe_jax.study.report.expert_count import names
from moe_jax.study.report.expert_count.values import SCRATCH, Records
from moe_jax.study.report.expert_count.verdict import Verdict


def _seeds(verdict: Verdict) -> str:
    seeds = {c.seeds for c in verdict.contrasts}
    fewest = min((len(s) for s in seeds), default=0)
    most = max((len(s) for s in seeds), default=0)
    if most == 1:
        return (
            'One seed: the intervals cover the choice of evaluation examples only, not the luck of '
            'pretraining. '
            'Another seed could move any of these numbers by more than its interval.'
        )
    few = ', which is few, so the seed part of the intervals is rough' if most < 5 else ''
    count = f'{most} seeds' if fewest == most else f'Between {fewest} and {most} seeds'
    return f'{count}: each resample draws seeds as well as examples{few}.'


def _training(records: Records) -> str | None:
    stages: dict[bool, set[str]] = {True: set(), False: set()}
    for score in records.scores:
        stages[score.model.method != SCRATCH] |= {stage.name for stage in score.stages}
    if not stages[True] or not stages[False]:
        return None
    extra = stages[True] - stages[False] - {'shrunk'}
    if not extra:
        return (
            'Shrunk and from-scratch models pass through the same training stages after '
            'pretraining.'
        )
    steps = records.study.setup.get('steps', {})
    warm = f' ({steps["warm"]} steps)' if 'warmed' in extra and 'warm' in steps else ''
    labels = listed(f'"{names.STAGES.get(s, s)}"' for s in sorted(extra))
    return f'Shrunk models get training that from-scratch models do not: {labels}{warm}.'


def _cost(records: Records) -> str | None:
    sizes = [p for p in records.pretrains if p.parameters and p.active and p.tokens]
    if len({p.experts for p in sizes}) < 2:
        return None
    small, large = min(sizes, key=lambda p: p.experts), max(sizes, key=lambda p: p.experts)
    tokens = {p.tokens for p in sizes}
    spent = 'the same number of tokens' if len(tokens) == 1 else 'different numbers of tokens'
    return (
        f'All sizes were pretrained on {spent}: {small.experts} experts have '
        f'{names.millions(small.parameters)} '
        f'parameters ({names.millions(small.active)} active per token), {large.experts} have '
        f'{names.millions(large.parameters)} ({names.millions(large.active)} active).'
    )


def _noise(verdict: Verdict) -> str | None:
    if all(c.status != 'noise' for c in verdict.contrasts):
        return None
    reach = statistics.median((c.estimate.high - c.estimate.low) / 2 for c in verdict.contrasts)
    return (
        '"Within noise" means that this study cannot tell the two apart, not that they are equal: '
        f'its intervals reach about {reach:.3f} nats to either side.'
    )


def caveats(verdict: Verdict, records: Records) -> tuple[str, ...]:
    """Cautions for a reader before a verdict: seeds, splits, training, cost, noise."""
    contrasts = [*verdict.contrasts, *(c for r in verdict.rivals for c in r.pairs)]
    for lineup in verdict.lineups:
        contrasts += [s.final for s in lineup.standings if s.final] + list(lineup.behind)
    comparisons = len({frozenset((c.model, c.other)) for c in contrasts})
    cautions = [
        _seeds(verdict),
        _noise(verdict),
        'Intervals are 95% percentile intervals of a paired bootstrap over groups of examples, '
        'widened where groups are few. '
        'None is corrected '
        f'for the number of comparisons ({comparisons} here): about one in twenty null differences '
        'looks real.',
        'The train and validation splits are our own (below), so no score can be set beside '
        'published ones.',
        _training(records),
        _cost(records),
    ]
    if verdict.uninformative:
        cautions.append(
            f'On {listed(verdict.uninformative)} no model is measurably above always giving '
            'the commonest '
            'answer (allowing for the number of models): accuracy there carries no information.'
        )
    return tuple(text for text in cautions if text)
