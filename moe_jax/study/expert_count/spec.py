"""The specification of a study, one frozen value; a config file is a function that returns one.

Letters: Z experts pretrained with, G experts left.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from moe_jax.base import config_file
from moe_jax.config import Config
from moe_jax.data import limits
from moe_jax.study.recovery.spec import Drop, Recipe, RecoveryStudy, Sparsify
from moe_jax.study.spec_checks import check_common, check_labels, check_lengths
from prune.catalog import registry
from train.loop.options import TrainOptions
from train.recipes.distill import Distill
from train.trainable.trainable import Trainable

COUNTS = (
    'corpus_characters', 'task_limit', 'validation_limit', 'observe_tokens', 'heldout_tokens',
    'score_rows',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A pruning method of `prune.methods()` with its options, under the name the report uses.

    label: that name, which records use ('': the method's title, such as 'M-SMoE').
    """

    label: str = ''
    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, 'label', registry.title(self.name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recovery:
    """The training steps of every model after shrinking, shrunk or not (UNCURL, section 4).

    `warm` trains routers alone; `prefinetune` trains everything on a mixture of the other tasks and
    of pretraining text (share `text_share` of the rows); `finetune` trains on the task.
    """

    warm: TrainOptions
    prefinetune: TrainOptions
    finetune: TrainOptions
    text_share: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """An expert-count study: the models to pretrain, the ways to shrink, the tasks to compare on.

    `model` is the model with any expert count; `experts` the counts Z to pretrain; `main` the
    method of the question, run on every pair of `pairs` (Z, G), and `rivals` those run on
    `rival_pairs`. `capacity` replaces the capacity factors after pretraining (None: dropless, so
    that a score does not depend on what shares its batch). Limits: examples (or documents) a task
    may train on, examples it is scored on, tokens the statistics are taken from, and held-out
    tokens a text is scored on. parallel: over how many devices latency is measured and modelled.
    """

    name: str
    description: str
    model: Config
    experts: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    main: Method
    rivals: tuple[Method, ...]
    rival_pairs: tuple[tuple[int, int], ...]
    tasks: tuple[str, ...]
    pretrain: TrainOptions
    recovery: Recovery
    seeds: tuple[int, ...] = (0,)
    capacity: float | None = None
    corpus_characters: int = limits.CORPUS_CHARACTERS
    task_limit: int = limits.TASK_LIMIT
    validation_limit: int = limits.VALIDATION_LIMIT
    observe_tokens: int = limits.HELDOUT_TOKENS
    heldout_tokens: int = limits.HELDOUT_TOKENS
    score_rows: int = limits.SCORE_ROWS
    parallel: tuple[int, ...] = (1, 2, 4)

    def __post_init__(self) -> None:
        _check(self)

    def replace(self, **fields: Any) -> Self:
        return dataclasses.replace(self, **fields)

    def model_with(self, experts: int) -> Config:
        """The model to pretrain with Z experts."""
        return self.model.with_experts(experts)

    def methods(self) -> tuple[Method, ...]:
        return (self.main, *self.rivals)

    @property
    def tuned_length(self) -> int:
        """Tokens in a row of the tasks."""
        return self.recovery.finetune.length


def _check(study: Study) -> None:
    check_common(study, COUNTS)
    _check_pairs(study)
    _check_names(study)
    if not 0 < study.recovery.text_share <= 1:
        raise ValueError(f'study {study.name}: text_share={study.recovery.text_share}: in (0, 1]')
    if not study.parallel or min(study.parallel) < 1:
        raise ValueError(f'study {study.name}: parallel={study.parallel}: numbers of devices, at '
                         'least one of them, each from 1')
    stages = {'pretrain': study.pretrain, **_stages(study.recovery)}
    check_lengths(study, stages)


def _check_pairs(study: Study) -> None:
    counts, least = set(study.experts), study.model.topk
    if not counts or min(counts) < least or len(counts) < len(study.experts):
        raise ValueError(f'study {study.name}: experts={study.experts}: at least one count, '
                         f'distinct, each at least {least} (topk={least})')
    for name in ('pairs', 'rival_pairs'):
        pairs = getattr(study, name)
        if len(set(pairs)) < len(pairs):
            raise ValueError(f'study {study.name}: {name}={pairs}: each once')
        for z, g in pairs:
            if z not in counts:
                raise ValueError(f'study {study.name}: pair {z}->{g} shrinks a model that is not '
                                 f'pretrained; experts are {sorted(counts)}')
            if not least <= g < z:
                raise ValueError(f'study {study.name}: pair {z}->{g}: keep {least} to {z - 1} '
                                 f'experts (topk={least})')
    scratch = {g for _, g in study.pairs} - counts
    if scratch:
        raise ValueError(f'study {study.name}: nothing to compare with: pretrain {sorted(scratch)} '
                         'experts from scratch too')


def _check_names(study: Study) -> None:
    check_labels(study.name, [method.label for method in study.methods()], 'method')
    for i, method in enumerate(study.methods()):
        for other in study.methods()[:i]:
            if (method.name, dict(method.options)) == (other.name, dict(other.options)):
                raise ValueError(f'study {study.name}: methods {other.label!r} and '
                                 f'{method.label!r} are the same method with the same options')


def _stages(recovery: Recovery) -> Mapping[str, TrainOptions]:
    return {name: getattr(recovery, name) for name in ('warm', 'prefinetune', 'finetune')}


# The classes of a config, so that the error for a misspelled field names the nearest one.
KINDS = (Study, Recovery, Method, RecoveryStudy, Drop, Sparsify, Recipe, Distill, Trainable, Config,
         TrainOptions)


def load(path: str | Path, variant: str = 'config') -> Study | RecoveryStudy:
    """Run a config file's function `variant` ('config', 'smoke') and return its study.

    Whatever the file raises becomes a ValueError that names the file, the line and the fault.
    """
    return config_file.load(path, variant, (Study, RecoveryStudy), KINDS)
