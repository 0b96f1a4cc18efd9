"""The text and tasks of a study, fetched, split, encoded and packed once per process."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping

import numpy as np
from tokenizers import Tokenizer

from moe_jax.data import cache, corpus, tokenizer
from moe_jax.data import tasks as task_sources
from moe_jax.data.documents import Corpus, Document
from moe_jax.data.encode import Encoded, encode, encode_part
from moe_jax.data.packing import pack
from moe_jax.data.tasks.encode import encode_train
from moe_jax.data.tasks.example import Task, TextTask, majority
from moe_jax.evals import multiple_choice, perplexity
from moe_jax.evals.scores import Scores
from moe_jax.study.spec import Study

Packed = Mapping[str, np.ndarray]
Validation = multiple_choice.Questions | perplexity.Texts


@dataclasses.dataclass(frozen=True, eq=False)
class TaskMaterial:
    """A task ready to train on and to score; `digest` identifies its examples."""

    name: str
    train: Packed
    validation: Validation
    note: dict[str, object]
    digest: str


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """Everything a study reads: pretraining rows and held-out texts by domain, and the tasks."""

    tokenizer: Tokenizer
    train: dict[str, Packed]
    heldout: dict[str, perplexity.Texts]
    tasks: dict[str, TaskMaterial]
    digest: str
    source: str


def prepare(study: Study, data_dir: str | os.PathLike[str] | None = None) -> Material:
    """Fetch what is missing and encode everything; a repeat reads the cache."""
    text = corpus.load(data_dir, cap=study.corpus_characters)
    path = _tokenizer(text, study.model.vocab)
    encoder = tokenizer.load(path)
    tokenizer.check(encoder, study.model.vocab)
    length = study.pretrain.length
    train = {d: pack(encode_part(text, d, 'train', path), length) for d in text.domains}
    heldout = {d: _texts(text.part(d, 'heldout'), encoder, length, study.heldout_tokens)
               for d in text.domains}
    tasks = {name: _task(name, study, text, encoder, data_dir) for name in study.tasks}
    digest = _sha(text.fingerprint, tokenizer.digest(path), str(study.heldout_tokens))
    return Material(encoder, train, heldout, tasks, digest, text.source)


def evaluate(cfg, params, validation: Validation, rows: int) -> Scores:
    """Score a task's validation side, or held-out text, whichever it is."""
    kind = multiple_choice if isinstance(validation, multiple_choice.Questions) else perplexity
    return kind.evaluate(cfg, params, validation, rows=rows)


def _tokenizer(text: Corpus, vocab: int):
    """The tokenizer trained on a corpus, kept in the cache by what it was trained on."""
    path = cache.root() / 'tokenizers' / f'{_sha(text.fingerprint, str(vocab))}.json'
    if not path.exists():
        tokenizer.train(tokenizer.sample(text), vocab, path)
    return path


def _texts(documents: tuple[Document, ...], encoder: Tokenizer, length: int, limit: int):
    """Documents, the last one cut, of `limit` tokens together."""
    encoded = _first_tokens(encode(encoder, [d.text for d in documents]), limit)
    count = len(encoded.offsets) - 1
    ids = tuple(d.id for d in documents[:count])
    return perplexity.Texts.encode(encoded, ids, tuple(d.group for d in documents[:count]), length)


def _first_tokens(encoded: Encoded, limit: int) -> Encoded:
    if len(encoded.tokens) <= limit:
        return encoded
    begins = encoded.offsets[:-1][encoded.offsets[:-1] < limit]
    return Encoded(encoded.tokens[:limit], np.append(begins, limit))


def _task(name: str, study: Study, text: Corpus, encoder: Tokenizer, data_dir) -> TaskMaterial:
    task = task_sources.load(name, corpus=text, data_dir=data_dir, limit=study.task_limit)
    length = study.recovery.finetune.length
    if isinstance(task, TextTask):
        train = pack(encode(encoder, task.train), length)
        ids = tuple(f'{name}/{i}' for i in range(len(task.validation)))
        documents = tuple(Document(i, name, t) for i, t in zip(ids, task.validation, strict=True))
        validation: Validation = _texts(documents, encoder, length, study.heldout_tokens)
        examples = len(validation.ids)
    else:
        train = encode_train(task.examples_train, encoder, length)
        validation = multiple_choice.Questions.encode(task.examples_validation, encoder, length)
        examples = len(task.examples_validation)
    note = {
        'split_note': task.split_note,
        'metric': 'text' if isinstance(task, TextTask) else 'choice',
        'majority': majority(task) if isinstance(task, Task) else None,
        'examples': examples,
    }
    return TaskMaterial(name, train, validation, note, _digest(train, validation))


def _digest(train: Packed, validation: Validation) -> str:
    if isinstance(validation, multiple_choice.Questions):
        arrays = [group[k] for group in validation.groups.values() for k in sorted(group)]
    else:
        arrays = [validation.packed[k] for k in sorted(validation.packed)]
    sha = hashlib.sha256()
    for array in (*(train[k] for k in sorted(train)), *arrays):
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]


def _sha(*parts: str) -> str:
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]
