"""Checks of single values, with error messages that name the valid ones."""

import difflib


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """A half sentence for error messages: the nearest valid name, and all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f'did you mean {close[0]!r}? ' if close else ''
    return f'{hint}valid: {", ".join(known)}'
