"""What is asked of a plan, checked before anything runs: names, options, budget, statistics.

Letters: E experts of a layer, G kept.
"""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

from moe_jax.base.checks import nearest
from moe_jax.calibration.stats import Stats
from moe_jax.config import Config
from prune.budget import budget
from prune.budget.budget import Budget, Spread
from prune.experts import registry
from prune.experts.keep import REPLACE_NEEDS, Gates, Replace
from prune.inputs import statistics
from prune.inputs.statistics import Layers

Protect = Literal['none', 'super']
FirstLayer = Literal['same', 'topk', 'keep']
PROTECT_NEEDS = {'none': (), 'super': ('element_max',)}
FIRST_NEEDS = {'same': (), 'keep': (), 'topk': ('count_top1',)}
WELCOME = ('count_top1', 'prob_sum')  # for notes, where they are there
AMOUNTS = (*budget.AMOUNTS, 'spread', 'floor', 'clamp')


class Common(NamedTuple):
    """The options that serve every method which drops experts; the defaults suit all methods."""

    gates: Gates = 'slice'
    replace: Replace = 'none'
    protect: Protect = 'none'


@dataclasses.dataclass(frozen=True)
class Request:
    """A method, its options (given or default), the budget, and what methods share."""

    name: str
    module: ModuleType
    chosen: Mapping[str, Any]
    budget: Budget
    common: Common
    first_layer: FirstLayer
    group: str | None

    @property
    def needs(self) -> tuple[str, ...]:
        """Statistics that the method itself reads."""
        return registry.needs(self.name, self.chosen)

    def statistics(self, stats: Stats | None, cfg: Config) -> tuple[Any, Layers]:
        """What the method reads and what the shared options read, as checked arrays by layer.

        The former is by group first where the method takes every group by itself. Raises
        ValueError for what is missing, of another model's shapes, or not finite.
        """
        own = self.needs
        shared = (*REPLACE_NEEDS[self.common.replace], *PROTECT_NEEDS[self.common.protect],
                  *FIRST_NEEDS[self.first_layer], *budget.NEEDS[self.budget.spread])
        grouped = getattr(self.module, 'PER_GROUP', False)
        common = statistics.fetch(self.name, stats, cfg, self.group,
                                  shared if grouped else (*own, *shared), WELCOME)
        if not grouped:
            return common, common
        return statistics.by_group(self.name, stats, cfg, self.group, own), common

    def record(self) -> dict[str, Any]:
        """Every option with the value it had, for a plan's record."""
        return {key: _plain(value) for key, value in {
            **self.chosen, 'group': self.group, **self.common._asdict(),
            'first_layer': self.first_layer, 'spread': self.budget.spread}.items()}


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
    module = registry.method(name)
    amounts = {key: value for key, value in options.items() if key in AMOUNTS}
    chosen = registry.check_options(name, {k: v for k, v in options.items() if k not in AMOUNTS})
    replace = getattr(module, 'REPLACE', 'none') if replace is None else replace
    if amounts.get('spread') is None:
        amounts['spread'] = getattr(module, 'SPREAD', 'layer')
    _check_words(name, gates=gates, replace=replace, protect=protect, first_layer=first_layer,
                 spread=amounts['spread'])
    common = Common(gates, replace, protect)
    if registry.form(name) == 'plan' and common != Common():
        raise ValueError(f'gates, replace and protect are for methods that drop experts; {name!r} '
                         'plans merges (its router_init says what becomes of the router)')
    wanted = Budget(**amounts, keep_first=first_layer == 'keep', constants=replace == 'mean')
    budget.check(cfg, wanted)
    if registry.form(name) != 'scores':
        budget.check_unscored(wanted)
    return Request(name, module, chosen, wanted, common, first_layer, group)


def _check_words(name: str, **given: Any) -> None:
    hints = {'gates': Gates, 'replace': Replace, 'protect': Protect, 'first_layer': FirstLayer,
             'spread': Spread}
    for key, value in given.items():
        if value not in (valid := get_args(hints[key])):
            raise ValueError(f'{name}: {key}={value!r}; {nearest(str(value), valid)}')


def _plain(value: Any) -> Any:
    """An option as it is recorded: numbers and words as they are, anything else by its kind."""
    known = isinstance(value, str | int | float | bool) or value is None
    return value if known else f'<{type(value).__name__}>'
