"""A sanity task that every model should solve: the domain of the corpus that a passage is from."""

from collections.abc import Sequence

from moe_jax.data import prompts
from moe_jax.data.documents import Corpus, Document, order
from moe_jax.data.tasks.example import Example, Task
from moe_jax.data.tasks.passages import spans
from moe_jax.data.tasks.splits import Side, one_side

CHARACTERS = 240
SHORTEST = 40
PER_DOMAIN: dict[Side, int] = {'train': 480, 'validation': 120}


def passages(documents: Sequence[Document], count: int) -> list[tuple[str, str, str]]:
    """(id, group, text) of at most `count` passages, taken by hash from all documents."""
    pieces = [(f'{document.id}@{index}', document.group, piece)
             for document in documents
             for index, span in enumerate(spans(document.text, CHARACTERS))
             if len(piece := document.text[span]) >= SHORTEST]
    return sorted(pieces, key=lambda passage: order(passage[0]))[:count]


def make(corpus: Corpus, seed: int = 0) -> Task:
    """A balanced choice among the corpus's domains, split by document."""
    choices = tuple(f' {domain}' for domain in corpus.domains)
    sides: dict[Side, list[Example]] = {'train': [], 'validation': []}
    for side, examples in sides.items():
        by_domain = [passages(one_side(corpus.part(domain, 'task'), side, seed), PER_DOMAIN[side])
                 for domain in corpus.domains]
        fewest = min(map(len, by_domain))
        if not fewest:
            empty = [domain for domain, texts in zip(corpus.domains, by_domain, strict=True)
                     if not texts]
            raise ValueError(f"task 'domain_id': no {side} passages of {empty}; each domain needs "
                             f'two documents in its task part, of {SHORTEST} characters or more')
        for label, texts in enumerate(by_domain):
            for id, group, text in texts[:fewest]:
                context, clips = prompts.render('domain_id', {'passage': text}, choices)
                examples.append(Example(f'domain_id/{id}', context, choices, label, group, clips))
    return Task('domain_id', tuple(sides['train']), tuple(sides['validation']),
                'made from the task part of the corpus, which pretraining never sees; '
                'split 80/20 by document', corpus.source or 'corpus')
