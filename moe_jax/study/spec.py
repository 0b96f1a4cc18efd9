"""What a study asks, as one frozen value; a config file is a function that returns one.

Letters: Z experts pretrained with, G experts left.
"""

import dataclasses
import importlib.util
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from moe_jax.config import Config, nearest
from train.options import TrainOptions

COUNTS = (
    'corpus_characters', 'task_limit', 'validation_limit', 'observe_tokens', 'heldout_tokens',
    'score_rows',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A pruning method of `prune.methods()` with its options, under the name the report uses."""

    label: str
    name: str
    options: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recovery:
    """The steps every model gets after shrinking, and the unshrunk ones too (UNCURL, section 4).

    `warm` trains routers alone; `prefinetune` trains everything on a mixture of the other tasks and
    of pretraining text (share `text_share` of the rows); `finetune` trains on the task.
    """

    warm: TrainOptions
    prefinetune: TrainOptions
    finetune: TrainOptions
    text_share: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """An expert-count study: which models to pretrain, how to shrink them, and on what to compare.

    `model` is the model with any expert count; `experts` the counts Z to pretrain; `main` the
    method of the question, run on every pair of `pairs` (Z, G), and `rivals` those run on
    `rival_pairs`. `capacity` replaces the capacity factors after pretraining (None: dropless, so
    that a score does not depend on what shares its batch). Limits: examples (or documents) a task
    may train on, examples it is scored on, tokens the statistics are taken from, and held-out
    tokens a text is scored on.
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
    corpus_characters: int = 9_000_000
    task_limit: int = 2000
    validation_limit: int = 2000
    observe_tokens: int = 16_384
    heldout_tokens: int = 16_384
    score_rows: int = 32

    def __post_init__(self) -> None:
        _check(self)

    def replace(self, **fields: Any) -> Self:
        return dataclasses.replace(self, **fields)

    def model_with(self, experts: int) -> Config:
        """The model to pretrain with Z experts."""
        return self.model.with_experts(experts)

    def methods(self) -> tuple[Method, ...]:
        return (self.main, *self.rivals)


def _check(study: Study) -> None:
    _check_counts(study)
    _check_pairs(study)
    _check_names(study)
    if not 0 < study.recovery.text_share <= 1:
        raise ValueError(f'study {study.name}: text_share={study.recovery.text_share}: in (0, 1]')
    stages = {'pretrain': study.pretrain, **_stages(study.recovery)}
    lengths = {name: stage.length for name, stage in stages.items()}
    tuned = {length for name, length in lengths.items() if name != 'pretrain'}
    if len(tuned) > 1 or max(lengths.values()) > study.model.positions:
        raise ValueError(f'study {study.name}: rows of {lengths} tokens: the stages after '
                         'pretraining share rows, so one length for them, and none above the '
                         f'{study.model.positions} positions of the model')


def _check_counts(study: Study) -> None:
    for name in COUNTS:
        value = getattr(study, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f'study {study.name}: {name}={value!r}: must be a positive integer')
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        raise ValueError(f'study {study.name}: seeds={study.seeds}: at least one, each once')
    if study.capacity is not None and not study.capacity > 0:
        raise ValueError(f'study {study.name}: capacity={study.capacity}: positive, or None for '
                         'dropless')


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
    if not study.name or study.name != Path(study.name).name:
        raise ValueError(f'study name {study.name!r}: must do as the name of a folder')
    if not study.tasks or len(set(study.tasks)) < len(study.tasks):
        raise ValueError(f'study {study.name}: tasks={study.tasks}: at least one, each once')
    labels = [method.label for method in study.methods()]
    if len(set(labels)) < len(labels) or 'none' in labels:
        raise ValueError(f'study {study.name}: method labels {labels} must differ, and not be none')
    for i, method in enumerate(study.methods()):
        for other in study.methods()[:i]:
            if (method.name, dict(method.options)) == (other.name, dict(other.options)):
                raise ValueError(f'study {study.name}: methods {other.label!r} and '
                                 f'{method.label!r} are the same method with the same options')


def _stages(recovery: Recovery) -> Mapping[str, TrainOptions]:
    return {name: getattr(recovery, name) for name in ('warm', 'prefinetune', 'finetune')}


def load(path: str | Path, variant: str = 'config') -> Study:
    """Run a config file's function `variant` ('config', 'smoke') and return its study.

    Whatever the file raises becomes a ValueError that names the file, the line and the fault.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such config file; those that come with the library '
                                'are in configs/')
    spec = importlib.util.spec_from_file_location(f'moe_jax_config_{path.stem}', path)
    if spec is None or spec.loader is None:
        raise ValueError(f'{path}: a config is a Python file (.py)')
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if callable(getattr(module, variant, None)):
            study = getattr(module, variant)()
    except Exception as error:
        raise ValueError(_fault(path, error)) from error
    if not callable(getattr(module, variant, None)):
        have = [name for name in ('config', 'smoke') if callable(getattr(module, name, None))]
        known = nearest(variant, have) if have else 'it must have config(), which returns a Study'
        raise ValueError(f'{path} has no function {variant}(); {known}')
    if not isinstance(study, Study):
        raise ValueError(f'{path}: {variant}() returned {type(study).__name__}; it must return a '
                         'moe_jax.study.spec.Study')
    return study


def _fault(path: Path, error: Exception) -> str:
    """Where in the config something was raised, and what; a misspelt field with the nearest one."""
    if isinstance(error, SyntaxError):
        return f'{path}:{error.lineno}: {error.msg}'
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if Path(frame.filename).resolve() == path.resolve()]
    where = f'{path}:{lines[-1]}' if lines else str(path)
    misspelt = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'",
                         str(error))
    kinds = {kind.__name__: kind for kind in (Study, Recovery, Method, Config, TrainOptions)}
    if misspelt and misspelt[1] in kinds:
        known = [field.name for field in dataclasses.fields(kinds[misspelt[1]])]
        return f'{where}: {misspelt[1]} has no field {misspelt[2]!r}; {nearest(misspelt[2], known)}'
    kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
    return f'{where}: {kind}{error}'
