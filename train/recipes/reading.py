"""The texts and tasks of a run, fetched, encoded and packed, and its held-out sets.

T tokens in a row.
"""

import os
from pathlib import Path
from typing import NamedTuple, cast

from moe_jax.config import Config
from moe_jax.data import batches, corpus, tasks, tokenizer
from moe_jax.data.documents import Corpus
from moe_jax.data.encode import Encoded, encode, encode_part
from moe_jax.data.packing import pack
from moe_jax.data.tokenizer import OWN
from moe_jax.evals.tasks import EncodedTask, Validation, encode_task, scored_ids, texts
from moe_jax.storage import folder
from moe_jax.storage.tokens import FolderTokenizer, open_tokenizer
from train.recipes.run import Pairs, Run


class Reading(NamedTuple):
    """sets: packed rows [rows, T] with their shares; heldout: what to score, by domain or task;
    tokenizer: the file that all of it was encoded with."""

    sets: list[tuple[batches.Packed, float]]
    heldout: dict[str, Validation]
    tokenizer: Path


def prepare(run: Run, data_dir: str | os.PathLike[str] | None = None) -> Reading:
    """Fetch what is missing and encode everything; a repeat reads the cache.

    Fresh weights get a tokenizer trained on the corpus, a model from a folder keeps its own.
    Raises FileNotFoundError, KeyError or ValueError for what is not there.
    """
    needs_text = run.start is None or run.domains or not run.tasks
    text = corpus.load(data_dir, cap=run.corpus_characters) if needs_text else None
    shares = _domain_shares(run, text)
    sources = [tasks.load(name, corpus=text, data_dir=data_dir, limit=run.task_limit)
               for name, _ in run.tasks]
    opened = _tokenizer(run, text)
    encoder, marks, vocab = opened.encoder, opened.marks, _model(run).vocab
    tokenizer.check(encoder, vocab)
    length = run.options.length
    sets, heldout = [], {}
    for domain, share in shares:
        assert text is not None  # it is read where domains are
        sets.append((pack(_encoded(text, domain, opened), length), share))
        heldout[domain] = texts(text.part(domain, 'heldout'), encoder, length, run.heldout_tokens,
                                marks)
    for (name, share), source in zip(cast(Pairs, run.tasks), sources, strict=True):
        task: EncodedTask = encode_task(source, encoder, length, heldout_tokens=run.heldout_tokens,
                                        validation_limit=run.validation_limit, marks=marks)
        sets.append((task.train, share))
        heldout[name] = task.validation
    for ids in (*(rows['tokens'] for rows, _ in sets), *map(scored_ids, heldout.values())):
        tokenizer.check_used(encoder, vocab, ids, f'run {run.name}')
    return Reading(sets, heldout, opened.file)


def _model(run: Run) -> Config:
    if run.model is not None:
        return run.model
    assert run.start is not None  # one of the two
    return folder.config_of(run.start)


def _domain_shares(run: Run, text: Corpus | None) -> Pairs:
    """The domains to read with their shares; all of them where the run names nothing."""
    shares = cast(Pairs, run.domains)
    if not shares and run.tasks:
        return ()
    assert text is not None  # it is read where domains are
    if not shares:
        return tuple((domain, 1.0) for domain in text.domains)
    for domain, _ in shares:
        if domain not in text.domains:
            raise ValueError(f'run {run.name}: no domain {domain!r} in {text.source}; there are '
                             f'{", ".join(text.domains)}')
    return shares


def _tokenizer(run: Run, text: Corpus | None) -> FolderTokenizer:
    """The tokenizer of the model to start from, or one trained on the corpus."""
    if run.start is not None:
        return open_tokenizer(run.start)
    assert text is not None and run.model is not None  # it starts with fresh weights
    path = tokenizer.of_corpus(text, run.model.vocab)
    return FolderTokenizer(path, tokenizer.load(path), OWN, (OWN.end,))


def _encoded(text: Corpus, domain: str, opened: FolderTokenizer) -> Encoded:
    if opened.own:
        return encode_part(text, domain, 'train', opened.file)
    return encode(opened.encoder, text.texts(domain, 'train'), opened.marks.begin)
