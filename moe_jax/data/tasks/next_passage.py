"""A task of choosing the continuation of the input among four passages of the same document.

Shaped like ReCoRD (read, then pick what fits) but made from plain text; a substitute for it, not
comparable with it.
"""

from collections.abc import Sequence

from moe_jax.data import prompts
from moe_jax.data.documents import Corpus, Document, order
from moe_jax.data.tasks.example import Example, Task
from moe_jax.data.tasks.passages import spans
from moe_jax.data.tasks.splits import Side, one_side

CHARACTERS = 72
BEFORE = 6
OPTIONS = 4
PER_DOMAIN: dict[Side, int] = {'train': 960, 'validation': 240}
# A distractor is never among the passages read, nor right behind the answer.
APART = BEFORE + 2


def questions(document: Document) -> list[Example]:
    """Questions on one document without overlapping inputs; none if the document is too short."""
    places = spans(document.text, CHARACTERS)
    parts = [document.text[place] for place in places]
    made = []
    for index in range(BEFORE, len(parts), BEFORE + 1):
        id = f'next_passage/{document.id}@{index}'
        far = [part for place, part in enumerate(parts) if abs(place - index) >= APART]
        others = [part for part in dict.fromkeys(far) if part != parts[index]]
        if len(others) < OPTIONS - 1:
            continue
        drawn = sorted(others, key=lambda part, id=id: order(id + part))[:OPTIONS - 1]
        shown = sorted([parts[index], *drawn], key=lambda part, id=id: order(part + id))
        choices = tuple(f' {part}' for part in shown)
        passage = document.text[places[index - BEFORE].start:places[index - 1].stop]
        context, clips = prompts.render('next_passage', {'passage': passage}, choices)
        made.append(Example(id, context, choices, shown.index(parts[index]), document.group, clips))
    return made


def draw(documents: Sequence[Document], count: int) -> list[Example]:
    """At most `count` questions, by hash over all documents."""
    examples = [example for document in documents for example in questions(document)]
    return sorted(examples, key=lambda example: order(example.id))[:count]


def make(corpus: Corpus, seed: int = 0) -> Task:
    """Four-way choice of the right continuation, over all domains with long documents."""
    sides: dict[Side, list[Example]] = {'train': [], 'validation': []}
    for domain in corpus.domains:
        for side, examples in sides.items():
            examples.extend(draw(one_side(corpus.part(domain, 'task'), side, seed),
                                 PER_DOMAIN[side]))
    return Task('next_passage', tuple(sides['train']), tuple(sides['validation']),
                'made from the task part of the corpus, which pretraining never sees; '
                'split 80/20 by document', corpus.source or 'corpus')
