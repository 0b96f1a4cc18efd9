"""What methods there are, their options, and what each needs; the table itself is `prune.methods`.
"""

import inspect
import operator
import typing
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Literal, NamedTuple

from moe_jax.base.checks import nearest
from prune.experts.methods import METHODS
from prune.experts.routers import ROUTER_NEEDS
from prune.inputs.statistics import options_for
from prune.similarity.cluster import CENTER_NEEDS

# Statistics that an option's value asks for, beside the method's own NEEDS.
OPTION_NEEDS = {'center': CENTER_NEEDS, 'router_init': ROUTER_NEEDS}
FORMS = ('scores', 'choose', 'plan')


class MethodRow(NamedTuple):
    """A method: its name, paper, 'drop' or 'merge', the statistics it reads, and its cost."""

    name: str
    paper: str
    kind: str
    needs: tuple[str, ...]
    cost: str


def methods() -> tuple[MethodRow, ...]:
    """One row per method, with the statistics it needs under its default options."""
    return tuple(
        MethodRow(name, m.PAPER, m.KIND, needs(name, options(name)), m.COST)
        for name, m in METHODS.items()
    )


def method(name: str) -> ModuleType:
    """The module of a method; ValueError for an unknown one, with the nearest name."""
    if name not in METHODS:
        raise ValueError(f'no method {name!r}; {nearest(str(name), list(METHODS))}')
    return METHODS[name]


def form(name: str) -> str:
    """How a method decides: 'scores' ranks experts, 'choose' searches a set, 'plan' merges."""
    return next(f for f in FORMS if hasattr(method(name), f))


def options(name: str) -> dict[str, Any]:
    """The options of a method and their defaults; ValueError for an unknown method."""
    return options_of(getattr(method(name), form(name)))


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only options of a method's function, and their defaults."""
    keywords = inspect.signature(function, eval_str=True).parameters.values()
    return {p.name: p.default for p in keywords if p.kind is p.KEYWORD_ONLY}


def needs(name: str, chosen: Mapping[str, Any]) -> tuple[str, ...]:
    """The statistics a method reads with these options."""
    module = method(name)
    tables = OPTION_NEEDS | getattr(module, 'OPTION_NEEDS', {})
    extra = [n for key, table in tables.items() if key in chosen
             for n in table.get(chosen[key], ())]
    return tuple(dict.fromkeys((*module.NEEDS, *extra)))


def observe_options(*names: str, reservoir: int = 8192, **method_options: Any) -> dict[str, Any]:
    """What to pass to `moe_jax.observe` so that its statistics serve all these methods.

    method_options: those of the one method named, where its needs depend on them. reservoir: how
    many tokens to sample, where one of the methods needs a sample.
    """
    found: dict[str, Any] = {}
    for name in names:
        chosen = check_options(name, method_options) if len(names) == 1 else options(name)
        found |= options_for(needs(name, chosen), reservoir)
    return found


def check_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The method's options, given or default, each checked; ValueError with the nearest name."""
    return checked_options(name, getattr(method(name), form(name)), given)


def checked_options(name: str, function: Callable[..., Any], given: Mapping[str, Any]
                    ) -> dict[str, Any]:
    """As `check_options`, of any method's function."""
    chosen, hints = options_of(function), typing.get_type_hints(function)
    for key, value in given.items():
        if key not in chosen:
            known = nearest(key, list(chosen)) if chosen else 'it has none'
            raise ValueError(f'method {name!r} has no option {key!r}; {known}')
        chosen[key] = _typed(f'{name}: {key}', value, hints[key])
    return chosen


def _typed(where: str, value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) is Literal:
        valid = typing.get_args(hint)
        if value not in valid:
            raise ValueError(f'{where}={value!r}; {nearest(str(value), valid)}')
        return value
    if hint is bool and not isinstance(value, bool):
        raise ValueError(f'{where}={value!r}: must be True or False')
    if hint is int:
        if isinstance(value, bool) or not hasattr(value, '__index__') or not 0 <= value < 2**32:
            raise ValueError(f'{where}={value!r}: must be an integer from 0 to 2**32 - 1')
        return operator.index(value)
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f'{where}={value!r}: must be a number')
        return float(value)
    return value
