"""A task of any kind, encoded for training and scoring.

T tokens in a row.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping

import numpy as np
from tokenizers import Tokenizer

from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.data.documents import Document
from moe_jax.data.encode import Encoded, beginnings, encode
from moe_jax.data.limits import HELDOUT_TOKENS
from moe_jax.data.tasks.encode import encode_text, encode_train
from moe_jax.data.tasks.example import Task, TextTask, majority
from moe_jax.data.tasks.splits import cap
from moe_jax.data.tokenizer import OWN, Marks
from moe_jax.evals import multiple_choice, perplexity
from moe_jax.evals.scores import Scores

Packed = Mapping[str, np.ndarray]
Validation = multiple_choice.Questions | perplexity.Texts


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedTask:
    """Training rows, data to score, a note for reports, and a digest of all of them."""

    name: str
    train: Packed
    validation: Validation
    note: dict[str, object]
    digest: str


def encode_task(
    task: Task | TextTask,
    encoder: Tokenizer,
    length: int,
    *,
    validation_limit: int | None = None,
    heldout_tokens: int = HELDOUT_TOKENS,
    marks: Marks | None = None,
) -> EncodedTask:
    """Encode both sides of a task in rows of `length` tokens.

    `marks`: what opens and closes a text, where the tokenizer is not ours. At most
    `validation_limit` examples are scored, or `heldout_tokens` tokens of a text task.
    Raises ValueError when there is no token to train on, or none to score.
    """
    name = task.name
    if isinstance(task, TextTask):
        train = encode_text(task.train, encoder, length, marks=marks)
        ids = tuple(f'{name}/{i}' for i in range(len(task.validation)))
        documents = tuple(Document(i, name, t) for i, t in zip(ids, task.validation, strict=True))
        validation: Validation = texts(documents, encoder, length, heldout_tokens, marks)
        examples = len(validation.ids)
    else:
        chosen = cap(task.examples_validation, validation_limit)
        task = dataclasses.replace(task, examples_validation=chosen)
        train = encode_train(task.examples_train, encoder, length, marks=marks)
        validation = multiple_choice.Questions.encode(
            task.examples_validation, encoder, length, marks=marks)
        examples = len(task.examples_validation)
    scored = examples if isinstance(validation, multiple_choice.Questions) else (
        validation.packed['weights'].any())
    if not (train['weights'].any() and scored):
        raise ValueError(f'task {name!r}: no token to train on, or none to score, from '
                         f'{task.source}; give it more text')
    note = {
        'split_note': task.split_note,
        'metric': 'text' if isinstance(task, TextTask) else 'choice',
        'majority': majority(task) if isinstance(task, Task) else None,
        'examples': examples,
    }
    return EncodedTask(name, train, validation, note, digest_of(train, validation))


def scored_ids(validation: Validation) -> np.ndarray:
    """All token ids that scoring reads, one after the other, int [N]."""
    if isinstance(validation, multiple_choice.Questions):
        return np.array([id for prompt in validation.prompts
                         for id in itertools.chain(prompt.context, *prompt.options)])
    return validation.packed['tokens'].ravel()


def evaluate(
    cfg: Config, params: Params, validation: Validation, rows: int = 32
) -> Scores:
    """Score a task's validation examples, or the held-out text of a text task."""
    if isinstance(validation, multiple_choice.Questions):
        return multiple_choice.evaluate(cfg, params, validation, rows=rows)
    return perplexity.evaluate(cfg, params, validation, rows=rows)


def texts(
    documents: tuple[Document, ...], encoder: Tokenizer, length: int, limit: int,
    marks: Marks | None = None,
) -> perplexity.Texts:
    """Beginnings of as many documents as can have two rows each, `limit` tokens in all.

    Many beginnings rather than few whole documents: documents are what intervals resample.
    """
    encoded = encode(encoder, [d.text for d in documents], (OWN if marks is None else marks).begin)
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


def digest_of(train: Packed, validation: Validation) -> str:
    """A digest (16 hex digits) of all that training and scoring read, with labels and groups."""
    if isinstance(validation, multiple_choice.Questions):
        arrays = []
        known = [(e.id, e.group, e.label, *prompt)
                 for e, prompt in zip(validation.examples, validation.prompts, strict=True)]
    else:
        arrays = [*(validation.packed[k] for k in sorted(validation.packed)),
                  validation.document_BT]
        known = list(zip(validation.ids, validation.groups, strict=True))
    sha = hashlib.sha256(json.dumps(known).encode())
    for array in (*(train[k] for k in sorted(train)), *arrays):
        sha.update(f'{array.dtype} {array.shape}'.encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]
