"""Splitting and capping by hash: the same on every machine, and no group on both sides."""

import hashlib
from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar

from moe_jax.data.documents import order
from moe_jax.data.tasks.example import Example

Side = Literal['train', 'validation']
VALIDATION_SHARE = 0.2


class Grouped(Protocol):
    """An example, document or entry: anything with a group to keep on one side."""

    @property
    def group(self) -> str: ...


T = TypeVar('T', bound=Grouped)


def group_key(*texts: str) -> str:
    """A short group name for texts that differ only in case or white space."""
    text = '\n'.join(' '.join(part.lower().split()) for part in texts)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def split_groups(groups: Sequence[str], seed: int) -> frozenset[str]:
    """The groups of the validation side, given the group of each example.

    Groups in hash order join until a fifth of the examples is reached, so small sets get their
    share too; a group of more than half of them stays in training. Each seed splits differently.
    """
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    chosen, count = set(), 0
    for group in sorted(sizes, key=lambda name: order(f'{seed}/{name}')):
        if count >= VALIDATION_SHARE * len(groups):
            break
        if 2 * sizes[group] <= len(groups):
            chosen.add(group)
            count += sizes[group]
    return frozenset(chosen)


def one_side(items: Sequence[T], side: Side, seed: int) -> tuple[T, ...]:
    """The train (about 80 %) or validation part of things with a `group`, no group in both."""
    chosen = split_groups([item.group for item in items], seed)
    return tuple(item for item in items if (item.group in chosen) == (side == 'validation'))


def cap(examples: Sequence[Example], limit: int | None) -> tuple[Example, ...]:
    """At most `limit` examples, chosen by the hash of their id: a smaller limit takes a subset."""
    if limit is None or len(examples) <= limit:
        return tuple(examples)
    if limit < 1:
        raise ValueError(f'cap: limit is {limit}; give a positive number or None for all')
    kept = {example.id for example in sorted(examples, key=lambda e: order(e.id))[:limit]}
    return tuple(example for example in examples if example.id in kept)
