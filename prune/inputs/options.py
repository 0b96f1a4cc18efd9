"""The options of a function: its keyword-only parameters, checked by their types."""

import dataclasses
import inspect
import operator
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from moe_jax.base.checks import nearest


class AtLeast(NamedTuple):
    """The least valid value of an option, for `Annotated[float, AtLeast(0.0, '0 or more')]`.

    text: what the message says the value must be.
    """

    least: float
    text: str


def options_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only options of a function, and their defaults."""
    keywords = inspect.signature(function, eval_str=True).parameters.values()
    return {p.name: p.default for p in keywords if p.kind is p.KEYWORD_ONLY}


def checked_options(
    name: str, function: Callable[..., Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """All options of a method's function, given or default; ValueError with the nearest name."""
    options = options_of(function)
    hints = typing.get_type_hints(function, include_extras=True)
    for key, value in given.items():
        if key not in options:
            known = nearest(key, list(options)) if options else 'it has none'
            raise ValueError(f'method {name!r} has no option {key!r}; {known}')
        options[key] = _typed(f'{name}: {key}', value, hints[key])
    return options


def divided(options: Mapping[str, Any], *kinds: type) -> tuple[Any, ...]:
    """An instance of each dataclass from the options that are its fields, and a dict of the rest.
    """
    rest, made = dict(options), []
    for kind in kinds:
        names = [f.name for f in dataclasses.fields(kind) if f.name in rest]
        made.append(kind(**{name: rest.pop(name) for name in names}))
    return *made, rest


def check_words(name: str, hints: Mapping[str, Any], **words: Any) -> None:
    """Refuse, with ValueError, a word that its Literal type in `hints` does not have."""
    for key, value in words.items():
        if value not in (valid := typing.get_args(hints[key])):
            raise ValueError(f'{name}: {key}={value!r}; {nearest(str(value), valid)}')


def recorded(value: Any) -> Any:
    """An option as it is recorded: numbers and words as they are, anything else by its kind."""
    plain = isinstance(value, str | int | float | bool) or value is None
    return value if plain else f'<{type(value).__name__}>'


def _typed(where: str, value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) is typing.Annotated:
        hint, *bounds = typing.get_args(hint)
        value = _typed(where, value, hint)
        for bound in (b for b in bounds if isinstance(b, AtLeast)):
            if not (np.isfinite(value) and value >= bound.least):
                raise ValueError(f'{where}={value}: must be {bound.text}')
        return value
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
