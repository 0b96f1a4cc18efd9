"""Language modeling on one domain: fresh documents to fine-tune on, the held-out ones to score."""

from moe_jax.data.documents import Corpus
from moe_jax.data.tasks.example import TextTask


def make(corpus: Corpus, domain: str) -> TextTask:
    """The task 'lm-<domain>'."""
    return TextTask(f'lm-{domain}', corpus.texts(domain, 'task'), corpus.texts(domain, 'heldout'),
                    f'train is the task part of {domain}, validation its held-out part; '
                    f'pretraining sees neither; by document', corpus.source or 'corpus')
