"""What is asked of a plan, checked before anything runs: names, options, budget, statistics.

Letters: E experts of a layer, G kept.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from moe_jax.calibration.stats import Stats
from moe_jax.config import Config
from prune.budget import budget
from prune.budget.amounts import Amounts, Spread
from prune.budget.budget import Budget
from prune.experts.common import Common, FirstLayer, Gates, Protect
from prune.experts.keep import REPLACE_NEEDS
from prune.experts.methods import METHODS
from prune.inputs import statistics
from prune.inputs.discovery import find
from prune.inputs.method import Replace
from prune.inputs.options import check_words, divided
from prune.inputs.request import Call, call_of
from prune.inputs.statistics import Layers

PROTECT_NEEDS = {'none': (), 'super': ('element_max',)}
FIRST_NEEDS = {'same': (), 'keep': (), 'topk': ('count_top1',)}
WELCOME = ('count_top1', 'prob_sum')  # for notes, where they are there
WORDS = {'gates': Gates, 'replace': Replace, 'protect': Protect, 'first_layer': FirstLayer,
         'spread': Spread}


@dataclasses.dataclass(frozen=True)
class Request:
    """A method and its options, the budget, and what methods share, with nothing left open."""

    call: Call
    budget: Budget
    common: Common

    def statistics(
        self, stats: Stats | None, cfg: Config
    ) -> tuple[Layers | Mapping[str, Layers], Layers]:
        """What the method reads and what the shared options read, as checked arrays by layer.

        The former is by group first where the method takes every group by itself. Raises
        ValueError for what is missing, of another model's shapes, or not finite.
        """
        own, name, group = self.call.needs, self.call.name, self.call.group
        assert self.common.replace is not None  # the method's own by now
        shared = (*REPLACE_NEEDS[self.common.replace], *PROTECT_NEEDS[self.common.protect],
                  *FIRST_NEEDS[self.common.first_layer], *budget.NEEDS[self.budget.spread])
        grouped = self.call.method.per_group
        common = statistics.fetch(name, stats, cfg, group,
                                  shared if grouped else (*own, *shared), WELCOME)
        if not grouped:
            return common, common
        return statistics.by_group(name, stats, cfg, group, own), common

    def record(self) -> dict[str, Any]:
        """Every option with the value it had, for a plan's record."""
        return self.call.record() | {
            'group': self.call.group, **vars(self.common), 'spread': self.budget.spread}


def request(name: str, cfg: Config, *, group: str | None = None, **options: Any) -> Request:
    """The keywords of `prune.plan` as a Request.

    Raises ValueError for an unknown method or option (with the nearest name), an option that the
    method has no use for, and a budget that no scores could make right.
    """
    method = find(METHODS, name)
    amounts, common, own = divided(options, Amounts, Common)
    call = call_of(method, own, group=group)
    if common.replace is None:
        common = dataclasses.replace(common, replace=method.replace)
    spread = method.spread if amounts.spread is None else amounts.spread
    check_words(name, WORDS, **vars(common), spread=spread)
    if method.form == 'plan' and common != Common(replace='none', first_layer=common.first_layer):
        raise ValueError(f'gates, replace and protect are for methods that drop experts; {name!r} '
                         'plans merges (its router_init says what becomes of the router)')
    whole = Budget(**vars(amounts) | {'spread': spread}, keep_first=common.first_layer == 'keep',
                   constants=common.replace == 'mean')
    budget.check(cfg, whole)
    if method.form != 'scores':
        budget.check_unscored(whole)
    return Request(call, whole, common)
