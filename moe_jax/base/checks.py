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


def integer(name: str, value: Any, least: int | None = 0, below: int | None = None, *,
            note: str = '') -> int:
    """The value as an int; ValueError unless it is whole, no bool, and least <= value < below.

    note: what the number is, or what to do, for the end of the message.
    """
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None or not _within(whole, least, below):
        raise ValueError(f'{name}={value!r}: must be an integer{_range(least, below)}{_end(note)}')
    return whole


def number(name: str, value: Any, least: float | None = 0, below: float | None = None, *,
           above: float | None = None, most: float | None = None, note: str = '') -> float:
    """The value as a float; ValueError unless it is finite, no bool, and within the bounds.

    least <= value < below; `above` (exclusive) and `most` (inclusive) take their places.
    note: as for `integer`.
    """
    least = None if above is not None else least
    try:
        plain = isinstance(value, numbers.Real) and not isinstance(value, bool)
        real = float(value) if plain else math.nan
    except OverflowError:
        real = math.nan
    if not math.isfinite(real) or not _within(real, least, below, above, most):
        rule = _interval(least, below, above, most)
        raise ValueError(f'{name}={value!r}: must be a finite number{rule}{_end(note)}')
    return real


def choice(name: str, value: Any, valid: Iterable[str]) -> Any:
    """The value; ValueError with the nearest valid one unless it is among `valid`."""
    valid = tuple(valid)
    if not any(value is one or (isinstance(value, type(one)) and value == one) for one in valid):
        raise ValueError(f'{name}={value!r}; {nearest(str(value), valid)}')
    return value


def sequence(name: str, value: Any) -> tuple[Any, ...]:
    """The items of a tuple or list; ValueError for anything else."""
    if not isinstance(value, tuple | list):
        raise ValueError(f'{name}={value!r}: must be a tuple with one entry per layer')
    return tuple(value)


def flag(name: str, value: Any) -> bool:
    """The value; ValueError unless it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f'{name}={value!r}: must be True or False')
    return value


def nearest(name: str, known: Sequence[str]) -> str:
    """A half sentence for error messages: the nearest valid name, and all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f'did you mean {close[0]!r}? ' if close else ''
    return f'{hint}valid: {", ".join(known)}'


def _end(note: str) -> str:
    return f'; {note}' if note else ''


def _within(value: float, least: float | None, below: float | None, above: float | None = None,
            most: float | None = None) -> bool:
    return ((least is None or value >= least) and (below is None or value < below)
            and (above is None or value > above) and (most is None or value <= most))


def _range(least: float | None, below: float | None) -> str:
    """The bounds of an integer in words: ', at least 1 and below 5'."""
    words = [f'{word} {bound}' for word, bound in (('at least', least), ('below', below))
             if bound is not None]
    return f', {" and ".join(words)}' if words else ''


def _interval(least: float | None, below: float | None, above: float | None, most: float | None
              ) -> str:
    """The bounds of a number in words: ', at least 0', or ' in (0, 1]' where there are two."""
    low = f'[{least}' if least is not None else None if above is None else f'({above}'
    high = f'{below})' if below is not None else None if most is None else f'{most}]'
    if low and high:
        return f' in {low}, {high}'
    words = (('at least', least), ('above', above), ('below', below), ('at most', most))
    return ''.join(f', {word} {bound}' for word, bound in words if bound is not None)
