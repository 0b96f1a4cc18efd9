"""What a study asks, as one frozen value; a config file is a function that returns one.

Letters: Z experts pretrained with, G experts left.
"""

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from moe_jax.config import Config, nearest
from train.options import TrainOptions


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
    that a score does not depend on what shares its batch). Limits are counts of examples a task may
    use, of tokens the statistics are taken from, and of held-out tokens a text is scored on.
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
    counts = set(study.experts)
    least = study.model.topk
    for z, g in (*study.pairs, *study.rival_pairs):
        if z not in counts:
            raise ValueError(f'study {study.name}: pair {z}->{g} shrinks a model that is not '
                             f'pretrained; experts are {sorted(counts)}')
        if not least <= g < z:
            raise ValueError(f'study {study.name}: pair {z}->{g}: keep {least} to {z - 1} experts '
                             f'(topk={least})')
    scratch = {g for _, g in study.pairs} - counts
    if scratch:
        raise ValueError(f'study {study.name}: nothing to compare with: pretrain {sorted(scratch)} '
                         'experts from scratch too')
    if min(counts) < least or len(counts) < len(study.experts):
        raise ValueError(f'study {study.name}: experts={study.experts}: distinct, at least {least}')
    if not study.tasks or len(set(study.tasks)) < len(study.tasks):
        raise ValueError(f'study {study.name}: tasks={study.tasks}: at least one, each once')
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        raise ValueError(f'study {study.name}: seeds={study.seeds}: at least one, each once')
    labels = [method.label for method in study.methods()]
    if len(set(labels)) < len(labels) or 'none' in labels:
        raise ValueError(f'study {study.name}: method labels {labels} must differ, and not be none')
    if not 0 < study.recovery.text_share <= 1:
        raise ValueError(f'study {study.name}: text_share={study.recovery.text_share}: in (0, 1]')
    for stage in (study.pretrain, *_stages(study.recovery).values()):
        if stage.length > study.model.positions:
            raise ValueError(f'study {study.name}: rows of {stage.length} tokens; the model has '
                             f'{study.model.positions} positions')


def _stages(recovery: Recovery) -> Mapping[str, TrainOptions]:
    return {name: getattr(recovery, name) for name in ('warm', 'prefinetune', 'finetune')}


def load(path: str | Path, variant: str = 'config') -> Any:
    """Run a config file's function `variant` ('config', 'smoke') and return what it returns."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such config file; those that come with the library are '
                                'in configs/')
    spec = importlib.util.spec_from_file_location(f'moe_jax_config_{path.stem}', path)
    if spec is None or spec.loader is None:
        raise ValueError(f'{path}: a config is a Python file (.py)')
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError, NameError, TypeError, ValueError) as error:
        raise ValueError(f'{path}: {type(error).__name__}: {error}') from error
    if not callable(getattr(module, variant, None)):
        have = [name for name in ('config', 'smoke') if callable(getattr(module, name, None))]
        raise ValueError(f'{path} has no function {variant}(); {nearest(variant, have)}')
    return getattr(module, variant)()
