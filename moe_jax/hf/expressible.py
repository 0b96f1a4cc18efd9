"""Outcomes of shrinking that config.json of transformers has words for, and the other faults."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, Self

from moe_jax.config import CLOSED, Config

Kind = Literal['unequal', 'unknown', 'few', 'constants', 'closed', 'shared']


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an export must know of a model, be it made already or only planned."""

    topk: int  # experts that a token of the original uses
    counts: Sequence[int] | None  # experts of every MoE layer; None: known only after planning
    least: int  # experts that a token can use in the layer with the fewest
    constants: Sequence[int] = ()  # layers with constants in the places of dropped experts
    closed: Sequence[int] = ()  # layers with router rows that are never chosen
    shared: Sequence[int] = ()  # layers with router rows that share an expert

    @classmethod
    def of(cls, cfg: Config, topk: int | None = None) -> Self:
        """The outcome that a model is; topk: of the original, by default the model's own."""
        topk = cfg.topk if topk is None else topk
        rows = {i: alias for i in cfg.moe_layers if (alias := cfg.alias(i)) is not None}
        return cls(
            topk=topk, counts=[cfg.experts[i] for i in cfg.moe_layers],
            least=min((cfg.topk_in(i) for i in cfg.moe_layers), default=topk),
            constants=[i for i in rows if cfg.constants_in(i)],
            closed=[i for i, alias in rows.items() if CLOSED in alias],
            shared=[i for i, alias in rows.items() if [
                a for a in alias if 0 <= a < cfg.experts[i]] != list(range(cfg.experts[i]))],
        )


def faults(outcome: Outcome) -> dict[Kind, str]:
    """What no config of transformers can say of an outcome, by kind; empty where it says all."""
    reasons: dict[Kind, str] = {}
    counts, one = outcome.counts, 'and a config has one number for all'
    if counts is None:
        reasons['unknown'] = f'layers that may keep unequal numbers of experts, {one}'
    elif len(set(counts)) > 1:
        reasons['unequal'] = f'layers that keep {min(counts)} to {max(counts)} experts, {one}'
    if outcome.least < outcome.topk:
        reasons['few'] = (f'layers where a token can use {outcome.least} at most, and one of the '
                        f'original uses topk={outcome.topk}, a number that an export does not '
                        'change')
    kinds: tuple[tuple[Kind, Sequence[int], str], ...] = (
        ('constants', outcome.constants, 'constants in the places of dropped experts'),
        ('closed', outcome.closed, 'router rows that keep their share of the softmax and are '
                                   'never chosen'),
        ('shared', outcome.shared, 'router rows that share experts, an alias merge'))
    for kind, layers, what in kinds:
        if layers:
            reasons[kind] = f'{what}, in layers {list(layers)}'
    return reasons


def summary(found: Mapping[Kind, str], advice: Mapping[Kind, str]) -> str:
    """Faults as one text, each with how to avoid it in the reader's own words."""
    return '; '.join(f'{text} ({advice[kind]})' for kind, text in found.items())


def check(cfg: Config, base: Config) -> None:
    """Raise ValueError where config.json of the original `base` cannot say what a model has."""
    reasons = faults(Outcome.of(cfg, base.topk))
    if not reasons:
        return
    nearest = max(nearest_uniform(cfg), base.topk)
    advice: dict[Kind, str] = {
        'unequal': "avoid it with spread='layer' and one number; the nearest uniform plan keeps "
                   f'experts={nearest} in each',
        'few': f'avoid it without clamp, with at least experts={base.topk} in each',
        'constants': "avoid them with replace='none'",
        'closed': "avoid them with gates='slice'",
        'shared': "avoid it with another router_init than 'alias'",
    }
    raise ValueError(
        f'no config of transformers can say what this model has: {summary(reasons, advice)}. Plan '
        'it otherwise, or keep the native format (moe_jax.save), which stores this one')


def nearest_uniform(cfg: Config) -> int:
    """The number of experts, the same in every layer, nearest to a config's mean."""
    counts = [cfg.experts[i] for i in cfg.moe_layers]
    mean = max(cfg.topk, round(sum(counts) / len(counts)))
    traits = cfg.traits
    return traits.nearest(mean) if cfg.groups > 1 else max(mean, traits.group_least)
