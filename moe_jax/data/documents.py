"""Documents, and a corpus of them split once and for all into train, held-out and task parts."""

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Mapping

# Shares of the groups of a domain; the task part is never trained on, so tasks can be made of it.
SHARES = {'train': 0.86, 'heldout': 0.04, 'task': 0.10}
PARTS = tuple(SHARES)


@dataclasses.dataclass(frozen=True)
class Document:
    """One text with a stable id 'domain/group' or 'domain/group#piece'; pieces share one part."""

    id: str
    domain: str
    text: str

    @property
    def group(self) -> str:
        """The id without its piece: the unit that the split keeps together (a play, a headword)."""
        return self.id.partition('#')[0]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Documents by (domain, part), with a fingerprint of all their texts."""

    parts: Mapping[tuple[str, str], tuple[Document, ...]]
    fingerprint: str
    source: str = ''

    @property
    def domains(self) -> tuple[str, ...]:
        """The domain names, in order."""
        return tuple(dict.fromkeys(domain for domain, _ in self.parts))

    def part(self, domain: str, part: str) -> tuple[Document, ...]:
        """The documents of one domain in one part: 'train', 'heldout' or 'task'."""
        try:
            return self.parts[domain, part]
        except KeyError:
            raise KeyError(f'corpus: no part ({domain!r}, {part!r}); domains are {self.domains}, '
                           f'parts are {PARTS}') from None

    def texts(self, domain: str, part: str) -> tuple[str, ...]:
        """The texts of one domain in one part."""
        return tuple(document.text for document in self.part(domain, part))


def order(key: str) -> bytes:
    """The place of a key in a shuffle that is the same on every machine: its SHA-256."""
    return hashlib.sha256(key.encode()).digest()


def split(documents: Iterable[Document]) -> dict[str, tuple[Document, ...]]:
    """Splits one domain into train, heldout and task parts by the SHA-256 of each group.

    The groups in hash order are cut at fixed shares, at least one group to a part, so that a
    domain of few groups (plays) has a held-out part too; inside a part documents come in hash
    order of their group, pieces in the order given. Raises ValueError below three groups.
    """
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.group, []).append(document)
    if len(groups) < len(PARTS):
        raise ValueError(f'split: {len(groups)} groups of documents {sorted(groups)[:3]} cannot '
                         f'fill {len(PARTS)} parts; give at least {len(PARTS)} files per domain')
    names = sorted(groups, key=order)
    heldout = math.ceil(SHARES['heldout'] * len(names))
    task = heldout + math.ceil(SHARES['task'] * len(names))
    cuts = {'train': names[task:], 'heldout': names[:heldout], 'task': names[heldout:task]}
    return {part: tuple(document for name in cuts[part] for document in groups[name])
            for part in PARTS}


def cap_characters(documents: Iterable[Document], characters: int) -> tuple[Document, ...]:
    """The first documents whose texts together stay within a number of characters (or one)."""
    kept, total = [], 0
    for document in documents:
        total += len(document.text)
        if kept and total > characters:
            break
        kept.append(document)
    return tuple(kept)
