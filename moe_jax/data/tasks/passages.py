"""Cutting text into pieces at white space."""

import re


def spans(text: str, characters: int) -> list[slice]:
    """Consecutive pieces of at most `characters`, cut between words, as slices of the text."""
    matches = re.finditer(rf'\S(?:.{{0,{characters - 2}}}\S)?(?!\S)', text, re.DOTALL)
    return [slice(*match.span()) for match in matches]
