"""The text and tasks of a study, fetched, split, encoded and packed once per process."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping

import numpy as np
from tokenizers import Tokenizer

from moe_jax.data import corpus, tokenizer
from moe_jax.data import tasks as task_sources
from moe_jax.data.encode import encode_part
from moe_jax.data.packing import pack
from moe_jax.evals import perplexity
from moe_jax.evals.tasks import EncodedTask, digest_of, encode_task, texts
from moe_jax.study.expert_count.spec import Study
from moe_jax.study.recovery.spec import RecoveryStudy

Packed = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """All inputs of a study: pretraining rows and held-out texts by domain, and the tasks.

    `mixed` holds the pretraining text again in rows as long as the tasks' (the same arrays where
    the lengths agree), for stages that mix both.
    """

    tokenizer: Tokenizer
    train: dict[str, Packed]
    mixed: dict[str, Packed]
    heldout: dict[str, perplexity.Texts]
    tasks: dict[str, EncodedTask]
    digest: str
    source: str


def prepare(study: Study | RecoveryStudy, data_dir: str | os.PathLike[str] | None = None
            ) -> Material:
    """Fetch what is missing and encode everything; a repeat reads the cache."""
    text = corpus.load(data_dir, cap=study.corpus_characters)
    # All tasks are read before any text is encoded, so that missing data raises early.
    sources = {name: task_sources.load(name, corpus=text, data_dir=data_dir, limit=study.task_limit)
               for name in study.tasks}
    path = tokenizer.of_corpus(text, study.model.vocab)
    encoder = tokenizer.load(path)
    tokenizer.check(encoder, study.model.vocab)
    length, tuned = study.pretrain.length, study.tuned_length
    encoded = {d: encode_part(text, d, 'train', path) for d in text.domains}
    train: dict[str, Packed] = {d: pack(found, length) for d, found in encoded.items()}
    mixed: dict[str, Packed] = train if tuned == length else {
        d: pack(found, tuned) for d, found in encoded.items()}
    heldout = {d: texts(text.part(d, 'heldout'), encoder, length, study.heldout_tokens)
               for d in text.domains}
    tasks = {name: encode_task(task, encoder, tuned, validation_limit=study.validation_limit,
                               heldout_tokens=study.heldout_tokens)
             for name, task in sources.items()}
    digest = _sha(*(d + digest_of(train[d], heldout[d]) for d in text.domains))
    return Material(encoder, train, mixed, heldout, tasks, digest, text.source)


def _sha(*parts: str) -> str:
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]
