"""What is asked of a plan, checked before anything runs: names, options, budget, statistics.

Letters: E experts of a layer, G kept.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from moe_jax.calibration.stats import Stats
from moe_jax.config import Config
from prune.budget import budget
from prune.budget.budget import Budget, Spread
from prune.experts.keep import REPLACE_NEEDS, Gates
from prune.experts.methods import METHODS
from prune.inputs import statistics
from prune.inputs.catalogue import find
from prune.inputs.method import Replace
from prune.inputs.options import check_words
from prune.inputs.request import Call, call_of
from prune.inputs.statistics import Layers

Protect = Literal['none', 'super']
FirstLayer = Literal['same', 'topk', 'keep']
PROTECT_NEEDS = {'none': (), 'super': ('element_max',)}
FIRST_NEEDS = {'same': (), 'keep': (), 'topk': ('count_top1',)}
WELCOME = ('count_top1', 'prob_sum')  # for notes, where they are there
AMOUNTS = (*budget.AMOUNTS, 'spread', 'floor', 'clamp')
WORDS = {'gates': Gates, 'replace': Replace, 'protect': Protect, 'first_layer': FirstLayer,
         'spread': Spread}


class Common(NamedTuple):
    """The options that serve every method which drops experts; the defaults suit all methods."""

    gates: Gates = 'slice'
    replace: Replace = 'none'
    protect: Protect = 'none'


@dataclasses.dataclass(frozen=True)
class Request:
    """A method and its options, the budget, and what methods share."""

    call: Call
    budget: Budget
    common: Common
    first_layer: FirstLayer

    def statistics(
        self, stats: Stats | None, cfg: Config
    ) -> tuple[Layers | Mapping[str, Layers], Layers]:
        """What the method reads and what the shared options read, as checked arrays by layer.

        The former is by group first where the method takes every group by itself. Raises
        ValueError for what is missing, of another model's shapes, or not finite.
        """
        own, name, group = self.call.needs, self.call.name, self.call.group
        shared = (*REPLACE_NEEDS[self.common.replace], *PROTECT_NEEDS[self.common.protect],
                  *FIRST_NEEDS[self.first_layer], *budget.NEEDS[self.budget.spread])
        grouped = self.call.method.per_group
        common = statistics.fetch(name, stats, cfg, group,
                                  shared if grouped else (*own, *shared), WELCOME)
        if not grouped:
            return common, common
        return statistics.by_group(name, stats, cfg, group, own), common

    def record(self) -> dict[str, Any]:
        """Every option with the value it had, for a plan's record."""
        return self.call.record() | {
            'group': self.call.group, **self.common._asdict(), 'first_layer': self.first_layer,
            'spread': self.budget.spread}


def request(
    name: str,
    cfg: Config,
    *,
    gates: Gates = 'slice',
    replace: Replace | None = None,
    protect: Protect = 'none',
    first_layer: FirstLayer = 'same',
    group: str | None = None,
    **options: Any,
) -> Request:
    """The keywords of `prune.plan` as a Request.

    Raises ValueError for an unknown method or option (with the nearest name), an option that the
    method has no use for, and a budget that no scores could make right.
    """
    amounts = {key: value for key, value in options.items() if key in AMOUNTS}
    own = {key: value for key, value in options.items() if key not in AMOUNTS}
    method = find(METHODS, name)
    asked = call_of(method, own, group=group)
    replace = method.replace if replace is None else replace
    if amounts.get('spread') is None:
        amounts['spread'] = method.spread
    check_words(name, WORDS, gates=gates, replace=replace, protect=protect,
                first_layer=first_layer, spread=amounts['spread'])
    common = Common(gates, replace, protect)
    if method.form == 'plan' and common != Common():
        raise ValueError(f'gates, replace and protect are for methods that drop experts; {name!r} '
                         'plans merges (its router_init says what becomes of the router)')
    whole = Budget(**amounts, keep_first=first_layer == 'keep', constants=replace == 'mean')
    budget.check(cfg, whole)
    if method.form != 'scores':
        budget.check_unscored(whole)
    return Request(asked, whole, common, first_layer)
