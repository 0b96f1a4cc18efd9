"""A task of choosing the definition of a headword among four definitions of the dictionary.

Shaped like COPA (pick the text that goes with a short premise) but made from a dictionary; a
substitute for it, not comparable with it.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from moe_jax.data import prompts
from moe_jax.data.documents import Corpus, Document, order
from moe_jax.data.tasks.example import Example, Task
from moe_jax.data.tasks.splits import Side, one_side

DOMAIN = 'dictionary'
OPTIONS = 4
SHORTEST, LONGEST = 24, 100
COUNT: dict[Side, int] = {'train': 4000, 'validation': 1000}
# References to another headword define nothing.
REFERENCE = re.compile(r'(\d+\. )?(See|Same as|One of|Pl\.|imp\.|p\. p\.)\b')


class Entry(NamedTuple):
    """The first definition of a headword."""

    id: str
    group: str
    headword: str
    part_of_speech: str
    gloss: str


def entry(document: Document) -> Entry | None:
    """Reads 'headword, part of speech' and the first sense below; None where that will not do."""
    lines = document.text.split('\n')
    headword, _, part_of_speech = lines[0].rpartition(', ')
    gloss = lines[1].removeprefix('1. ') if len(lines) > 1 else ''
    usable = (SHORTEST <= len(gloss) <= LONGEST and headword and not REFERENCE.match(gloss)
              and headword.lower() not in gloss.lower())
    if not usable:
        return None
    return Entry(document.id, document.group.lower(), headword, part_of_speech, gloss)


def questions(entries: Sequence[Entry], count: int) -> Iterable[Example]:
    """At most `count` questions, by hash; the wrong glosses are of the same part of speech."""
    ranked = sorted(entries, key=lambda item: order(item.id))
    alike: dict[str, list[Entry]] = {}
    for item in ranked:
        alike.setdefault(item.part_of_speech, []).append(item)
    made = 0
    for item in ranked:
        wrong = distractors(item, alike[item.part_of_speech])
        if made == count:
            return
        if len(wrong) < OPTIONS - 1:
            continue
        shown = sorted([item.gloss, *wrong], key=lambda gloss, item=item: order(item.id + gloss))
        choices = tuple(f' {gloss}' for gloss in shown)
        context, clips = prompts.render(
            'gloss_choice', {'headword': f'{item.headword}, {item.part_of_speech}'}, choices)
        made += 1
        yield Example(f'gloss_choice/{item.id}', context, choices, shown.index(item.gloss),
                      item.group, clips)


def distractors(item: Entry, pool: Sequence[Entry]) -> list[str]:
    """Three other glosses of the pool, from the position that the headword's hash gives onwards."""
    start, glosses = int.from_bytes(order('walk' + item.id)[:8], 'big'), [item.gloss]
    for step in range(len(pool)):
        other = pool[(start + step) % len(pool)]
        if other.gloss not in glosses and item.headword.lower() not in other.gloss.lower():
            glosses.append(other.gloss)
        if len(glosses) == OPTIONS:
            break
    return glosses[1:]


def make(corpus: Corpus, seed: int = 0) -> Task:
    """Four-way choice of the definition; needs the corpus's dictionary. Split by headword."""
    if DOMAIN not in corpus.domains:
        raise KeyError(f"task 'gloss_choice': the corpus has no domain {DOMAIN!r}, only "
                       f'{corpus.domains}; load the pinned corpus')
    entries = [one for document in corpus.part(DOMAIN, 'task') if (one := entry(document))]
    sides = {side: tuple(questions(one_side(entries, side, seed), count))
             for side, count in COUNT.items()}
    return Task('gloss_choice', sides['train'], sides['validation'],
                'made from the task part of the dictionary, which pretraining never sees; '
                'split 80/20 by headword', corpus.source or 'corpus')
