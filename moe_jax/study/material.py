"""The text and tasks of a study, fetched, split, encoded and packed once per process."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping

import numpy as np
from tokenizers import Tokenizer

from moe_jax.data import cache, corpus, tokenizer
from moe_jax.data import tasks as task_sources
from moe_jax.data.documents import Corpus, Document
from moe_jax.data.encode import Encoded, beginnings, encode, encode_part
from moe_jax.data.packing import pack
from moe_jax.data.tasks.encode import encode_train
from moe_jax.data.tasks.example import Task, TextTask, majority
from moe_jax.data.tasks.splits import cap
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
    """Everything a study reads: pretraining rows and held-out texts by domain, and the tasks.

    `mixed` holds the pretraining text again in rows as long as the tasks' (the same arrays where
    the lengths agree), for stages that mix both.
    """

    tokenizer: Tokenizer
    train: dict[str, Packed]
    mixed: dict[str, Packed]
    heldout: dict[str, perplexity.Texts]
    tasks: dict[str, TaskMaterial]
    digest: str
    source: str


def prepare(study: Study, data_dir: str | os.PathLike[str] | None = None) -> Material:
    """Fetch what is missing and encode everything; a repeat reads the cache."""
    text = corpus.load(data_dir, cap=study.corpus_characters)
    # All tasks are read before any text is encoded: what one lacks is told early.
    sources = {name: task_sources.load(name, corpus=text, data_dir=data_dir, limit=study.task_limit)
               for name in study.tasks}
    path = _tokenizer(text, study.model.vocab)
    encoder = tokenizer.load(path)
    tokenizer.check(encoder, study.model.vocab)
    length, tuned = study.pretrain.length, study.recovery.finetune.length
    encoded = {d: encode_part(text, d, 'train', path) for d in text.domains}
    train = {d: pack(found, length) for d, found in encoded.items()}
    mixed = train if tuned == length else {d: pack(found, tuned) for d, found in encoded.items()}
    heldout = {d: _texts(text.part(d, 'heldout'), encoder, length, study.heldout_tokens)
               for d in text.domains}
    tasks = {name: _task(task, study, encoder) for name, task in sources.items()}
    digest = _sha(*(d + _digest(train[d], heldout[d]) for d in text.domains))
    return Material(encoder, train, mixed, heldout, tasks, digest, text.source)


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


def _texts(
    documents: tuple[Document, ...], encoder: Tokenizer, length: int, limit: int
) -> perplexity.Texts:
    """The beginnings of as many documents as give each two rows or more, `limit` tokens in all.

    Many beginnings rather than few whole documents: documents are what intervals resample.
    """
    encoded = encode(encoder, [d.text for d in documents])
    share = max(2 * length, _fair_share(np.diff(encoded.offsets), limit))
    encoded = beginnings(encoded, share)
    count = max(1, int(np.searchsorted(encoded.offsets, limit, side='right')) - 1)
    encoded = Encoded(encoded.tokens[: encoded.offsets[count]], encoded.offsets[: count + 1])
    ids, groups = (tuple(getattr(d, n) for d in documents[:count]) for n in ('id', 'group'))
    return perplexity.Texts.encode(encoded, ids, groups, length)


def _fair_share(sizes: np.ndarray, limit: int) -> int:
    """The largest c for which sum(min(size, c)) stays within the limit (at least 2)."""
    for taken, size in enumerate(np.sort(sizes)):
        share = limit // (len(sizes) - taken)
        if size > share:
            return max(2, share)
        limit -= int(size)
    return int(sizes.max())


def _task(task: Task | TextTask, study: Study, encoder: Tokenizer) -> TaskMaterial:
    name, length = task.name, study.recovery.finetune.length
    if isinstance(task, TextTask):
        train = pack(encode(encoder, task.train), length)
        ids = tuple(f'{name}/{i}' for i in range(len(task.validation)))
        documents = tuple(Document(i, name, t) for i, t in zip(ids, task.validation, strict=True))
        validation: Validation = _texts(documents, encoder, length, study.heldout_tokens)
        examples = len(validation.ids)
    else:
        chosen = cap(task.examples_validation, study.validation_limit)
        task = dataclasses.replace(task, examples_validation=chosen)
        train = encode_train(task.examples_train, encoder, length)
        validation = multiple_choice.Questions.encode(task.examples_validation, encoder, length)
        examples = len(task.examples_validation)
    scored = validation.packed['weights'].any() if isinstance(task, TextTask) else examples
    if not (train['weights'].any() and scored):
        raise ValueError(f'task {name!r}: no token to train on, or none to score, from '
                         f'{task.source}; give it more text')
    note = {
        'split_note': task.split_note,
        'metric': 'text' if isinstance(task, TextTask) else 'choice',
        'majority': majority(task) if isinstance(task, Task) else None,
        'examples': examples,
    }
    return TaskMaterial(name, train, validation, note, _digest(train, validation))


def _digest(train: Packed, validation: Validation) -> str:
    """16 hex digits of everything that training and scoring read, labels and groups included."""
    if isinstance(validation, multiple_choice.Questions):
        arrays = [group[k] for group in validation.groups.values() for k in sorted(group)]
        known = [(e.id, e.group, e.label) for e in validation.examples]
    else:
        arrays = [*(validation.packed[k] for k in sorted(validation.packed)),
                  validation.document_BT]
        known = list(zip(validation.ids, validation.groups, strict=True))
    sha = hashlib.sha256(json.dumps(known).encode())
    for array in (*(train[k] for k in sorted(train)), *arrays):
        sha.update(f'{array.dtype} {array.shape}'.encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]


def _sha(*parts: str) -> str:
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]
