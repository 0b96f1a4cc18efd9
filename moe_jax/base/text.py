"""Numbers and lists as text for people."""

from collections.abc import Iterable


def human(count: int) -> str:
    """A count with its unit: 1,059,994,624 is 1.06B."""
    for size, unit in ((1e9, 'B'), (1e6, 'M'), (1e3, 'k')):
        if count >= size:
            return f'{count / size:.3g}{unit}'
    return str(count)


def listed(items: Iterable[object]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    words = [str(item) for item in items]
    if len(words) < 2:
        return ''.join(words)
    return f'{", ".join(words[:-1])} and {words[-1]}'
