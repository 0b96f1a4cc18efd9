"""The catalog of all methods, whatever they shrink: their rows, options, and what to observe.

A room that shrinks something else (heads, channels) joins with its table of methods in TABLES.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from prune.experts.methods import METHODS
from prune.inputs.discovery import find, joined
from prune.inputs.method import Method
from prune.inputs.options import checked_options
from prune.inputs.statistics import options_for
from prune.weights.methods import WEIGHT_METHODS

# What methods shrink, and those that do.
TABLES = {'experts': METHODS, 'weights': WEIGHT_METHODS}
ALL = joined(*TABLES.values())
WEIGHTS = 'method for weights'  # what a weight method is called in messages


class MethodRow(NamedTuple):
    """A method: its name, paper, 'drop' or 'merge', the statistics it reads, and its cost."""

    name: str
    paper: str
    kind: str
    needs: tuple[str, ...]
    cost: str


class WeightMethodRow(NamedTuple):
    """A criterion: its name, paper, scope by default, the statistics it reads, and its cost."""

    name: str
    paper: str
    scope: str
    needs: tuple[str, ...]
    cost: str


def methods() -> tuple[MethodRow, ...]:
    """One row per method for experts, with the statistics it needs under its default options."""
    return tuple(MethodRow(m.name, m.paper, m.kind, m.reads(m.options), m.cost.value)
                 for m in METHODS.values())


def weight_methods() -> tuple[WeightMethodRow, ...]:
    """One row per criterion, with the statistics it needs under its default options."""
    return tuple(WeightMethodRow(m.name, m.paper, m.scope or '', m.reads(m.options), m.cost.value)
                 for m in WEIGHT_METHODS.values())


def method(name: str) -> Method:
    """The method of a name, whatever it shrinks; ValueError for an unknown one."""
    return find(ALL, name)


def title(name: str) -> str:
    """How a report writes a method; a name that no method has stays as it is."""
    return ALL[name].title if name in ALL else name


def options(name: str) -> dict[str, Any]:
    """The options of a method and their defaults; ValueError for an unknown method."""
    return find(METHODS, name).options


def weight_options(name: str) -> dict[str, Any]:
    """The options of a criterion and their defaults; ValueError for an unknown one."""
    return find(WEIGHT_METHODS, name, WEIGHTS).options


def check_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The method's options, given or default, each checked; ValueError with the nearest name."""
    return checked_options(name, find(METHODS, name).function, given)


def check_weight_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options, given or default, each checked; ValueError with the nearest name."""
    return checked_options(name, find(WEIGHT_METHODS, name, WEIGHTS).function, given)


def observe_options(*names: str, reservoir: int = 8192, **method_options: Any) -> dict[str, Any]:
    """What to pass to `moe_jax.observe` so that its statistics serve all these methods.

    names: of `prune.methods()` and `prune.weight_methods()`. method_options: those of the one
    method named, where its needs depend on them. reservoir: how many tokens to sample, where one of
    the methods needs a sample.
    """
    own_options = method_options if len(names) == 1 else {}
    observed: dict[str, Any] = {}
    for one in map(method, names):
        chosen = checked_options(one.name, one.function, own_options)
        observed |= options_for(one.reads(chosen), reservoir)
    return observed
