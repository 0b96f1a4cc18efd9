"""Checks of single values: each returns the value in its plain type or names what is wrong.

`name` is the argument as the user wrote it, with its owner in front where there is one
('Config.width', 'study small: epochs'); every message is 'name=value: rule'.
"""

import difflib
import math
import numbers
import operator
from collections.abc import Iterable, Sequence
from typing import Any


def integer(name: str, value: Any, least: int | None = 0, below: int | None = None) -> int:
    """The value as an int; ValueError unless it is whole, no bool, and least <= value < below."""
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None or not _within(whole, least, below):
        raise ValueError(f'{name}={value!r}: must be an integer{_range(least, below)}')
    return whole


def number(name: str, value: Any, least: float | None = 0, below: float | None = None, *,
           above: float | None = None, most: float | None = None) -> float:
    """The value as a float; ValueError unless it is finite, no bool, and within the bounds.

    least <= value < below; `above` (exclusive) and `most` (inclusive) take their places.
    """
    least = None if above is not None else least
    try:
        plain = isinstance(value, numbers.Real) and not isinstance(value, bool)
        found = float(value) if plain else math.nan
    except OverflowError:
        found = math.nan
    if not math.isfinite(found) or not _within(found, least, below, above, most):
        rule = _range(least, below, above, most)
        raise ValueError(f'{name}={value!r}: must be a finite number{rule}')
    return found


def choice(name: str, value: Any, valid: Iterable[str]) -> Any:
    """The value; ValueError with the nearest valid one unless it is among `valid`."""
    valid = tuple(valid)
    if not any(value is one or (isinstance(value, type(one)) and value == one) for one in valid):
        raise ValueError(f'{name}={value!r}; {nearest(str(value), valid)}')
    return value


def nearest(name: str, known: Sequence[str]) -> str:
    """A half sentence for error messages: the nearest valid name, and all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f'did you mean {close[0]!r}? ' if close else ''
    return f'{hint}valid: {", ".join(known)}'


def _within(value: float, least: float | None, below: float | None, above: float | None = None,
            most: float | None = None) -> bool:
    return ((least is None or value >= least) and (below is None or value < below)
            and (above is None or value > above) and (most is None or value <= most))


def _range(least: float | None, below: float | None, above: float | None = None,
           most: float | None = None) -> str:
    """The bounds in words: ', at least 1 and below 5'."""
    bounds = (('at least', least), ('above', above), ('below', below), ('at most', most))
    words = ' and '.join(f'{word} {bound}' for word, bound in bounds if bound is not None)
    return f', {words}' if words else ''
