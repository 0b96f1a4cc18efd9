"""Checks of every kind of study, from its values alone."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moe_jax.base.checks import integer
from train.loop.options import TrainOptions


def check_common(study: Any, counts: Iterable[str]) -> None:
    """Raise ValueError for a name, count, seed, task list or capacity that no study can have."""
    if not study.name or study.name != Path(study.name).name:
        raise ValueError(f'study name {study.name!r}: must be a valid folder name')
    for name in counts:
        integer(f'study {study.name}: {name}', getattr(study, name), 1)
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        raise ValueError(f'study {study.name}: seeds={study.seeds}: at least one, each once')
    if study.capacity is not None and not study.capacity > 0:
        raise ValueError(f'study {study.name}: capacity={study.capacity}: positive, or None for '
                         'dropless')
    if not study.tasks or len(set(study.tasks)) < len(study.tasks):
        raise ValueError(f'study {study.name}: tasks={study.tasks}: at least one, each once')


def check_labels(name: str, labels: list[str], what: str) -> None:
    """Raise ValueError where two labels are equal, or one is 'none', which stands for nothing."""
    if len(set(labels)) < len(labels) or 'none' in labels:
        raise ValueError(f'study {name}: {what} labels {labels} must differ, and not be none')


def check_lengths(study: Any, stages: Mapping[str, TrainOptions]) -> None:
    """Raise ValueError for stages after pretraining of several lengths, or rows too long."""
    lengths = {name: stage.length for name, stage in stages.items()}
    tuned = {length for name, length in lengths.items() if name != 'pretrain'}
    if len(tuned) > 1 or max(lengths.values()) > study.model.positions:
        raise ValueError(f'study {study.name}: rows of {lengths} tokens: the stages after '
                         'pretraining share rows, so one length for them, and none above the '
                         f'{study.model.positions} positions of the model')
