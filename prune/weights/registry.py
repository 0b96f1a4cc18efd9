"""What criteria for weights there are, their options, and what each needs.

The table itself is `prune.weights.methods`.
"""

from collections.abc import Callable, Collection, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from moe_jax.base.checks import nearest
from prune.experts.registry import checked_options, options_of
from prune.inputs.statistics import options_for
from prune.plans.masks import LEAVES
from prune.weights.methods import WEIGHT_METHODS

FORMS = ('scores', 'solve')
TRAFFIC = 'moments'  # how many tokens each expert was evaluated for


class WeightMethodRow(NamedTuple):
    """A criterion: its name, paper, scope by default, the statistics it reads, and its cost."""

    name: str
    paper: str
    scope: str
    needs: tuple[str, ...]
    cost: str


def weight_methods() -> tuple[WeightMethodRow, ...]:
    """One row per criterion, with the statistics it needs under its default options."""
    return tuple(
        WeightMethodRow(name, m.PAPER, m.SCOPE, weight_needs(name, weight_options(name)), m.COST)
        for name, m in WEIGHT_METHODS.items()
    )


def weight_method(name: str) -> ModuleType:
    """The module of a criterion; ValueError for an unknown one, with the nearest name."""
    if name not in WEIGHT_METHODS:
        raise ValueError(f'no method for weights {name!r}; '
                         f'{nearest(str(name), list(WEIGHT_METHODS))}')
    return WEIGHT_METHODS[name]


def form(name: str) -> str:
    """How a criterion decides: 'scores' ranks weights, 'solve' masks and changes them."""
    return next(f for f in FORMS if hasattr(weight_method(name), f))


def function(name: str) -> Callable[..., Any]:
    """The function of a criterion."""
    return getattr(weight_method(name), form(name))


def weight_options(name: str) -> dict[str, Any]:
    """The options of a criterion and their defaults; ValueError for an unknown one."""
    return options_of(function(name))


def check_weight_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options, given or default, each checked; ValueError with the nearest name."""
    chosen = checked_options(name, function(name), given)
    for key, value in chosen.items():
        if isinstance(value, float) and not (np.isfinite(value) and value >= 0):
            raise ValueError(f'{name}: {key}={value}: must be a number of 0 or more')
    if chosen.get('block') == 0:
        raise ValueError(f'{name}: block=0: at least one input')
    return chosen


def weight_needs(name: str, chosen: Mapping[str, Any], leaves: Collection[str] = LEAVES
                 ) -> tuple[str, ...]:
    """The statistics a criterion reads for these matrices with these options."""
    module = weight_method(name)
    tables = [module.NEEDS, *(table[chosen[key]] for key, table in getattr(
        module, 'OPTION_NEEDS', {}).items() if chosen[key] in table)]
    found = [need for leaf in LEAVES if leaf in leaves for table in tables for need in table[leaf]]
    return tuple(dict.fromkeys((TRAFFIC, *found))) if found else ()


def weight_observe_options(name: str, **method_options: Any) -> dict[str, Any]:
    """What to pass to `moe_jax.observe` so that its statistics serve a criterion."""
    return options_for(weight_needs(name, check_weight_options(name, method_options)))
