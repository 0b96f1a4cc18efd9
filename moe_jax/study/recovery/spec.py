"""The specification of a recovery study, which compares recipes that win back lost quality.

Letters: Z experts pretrained with, G experts left.
"""

import dataclasses
from typing import Any, Self

from moe_jax.config import Config
from moe_jax.data import limits
from moe_jax.study.spec_checks import check_common, check_labels, check_lengths
from train.loop.options import TrainOptions
from train.recipes.distill import Distill
from train.trainable.trainable import Trainable

COUNTS = (
    'experts', 'tuning_rows', 'corpus_characters', 'task_limit', 'validation_limit',
    'observe_tokens', 'heldout_tokens', 'score_rows',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drop:
    """Keep `experts` of each layer's, chosen by a method of `prune.methods()` with its options."""

    label: str
    name: str
    experts: int
    options: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sparsify:
    """Set a share of the weights inside the experts to zero, by one of `prune.weight_methods()`.

    pattern: (n, m), of every m consecutive inputs n stay, as in `prune.sparsify`.
    """

    label: str
    name: str
    sparsity: float
    pattern: tuple[int, int] | None = None
    options: tuple[tuple[str, Any], ...] = ()


Shrink = Drop | Sparsify


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to train a shrunk model.

    distill: the terms learned from the unshrunk model (None: cross-entropy on the task alone).
    trains: as `TrainOptions.trainable` (None: everything). select: train only the experts that get
    this share of the task's choices in the shrunk model (`prune.select_experts` by tokens).
    """

    label: str
    distill: Distill | None = None
    trains: str | Trainable | None = None
    select: float | None = None

    def __post_init__(self) -> None:
        if self.select is not None and (self.trains is not None or not 0 < self.select <= 1):
            raise ValueError(f'recipe {self.label!r}: select={self.select!r} must be in (0, 1], '
                             'and goes without trains: it says what trains')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecoveryStudy:
    """Pretrain Z experts, shrink in each way of `shrinks`, and recover with each of `recipes`.

    Every recipe gets the training rows of the task in the same order, and the steps of `recover`;
    its peak rate is the one of `rates` that leaves the lowest loss on `tuning_rows` rows kept back
    from training, tried with the first seed and kept for the others. `ceiling` is the label of the
    recipe that the unshrunk model gets too. `capacity` and the limits are as in `spec.Study`.
    """

    name: str
    description: str
    model: Config
    experts: int
    shrinks: tuple[Shrink, ...]
    recipes: tuple[Recipe, ...]
    ceiling: str
    tasks: tuple[str, ...]
    pretrain: TrainOptions
    recover: TrainOptions
    rates: tuple[float, ...]
    tuning_rows: int = 64
    seeds: tuple[int, ...] = (0,)
    capacity: float | None = None
    corpus_characters: int = limits.CORPUS_CHARACTERS
    task_limit: int = limits.TASK_LIMIT
    validation_limit: int = limits.VALIDATION_LIMIT
    observe_tokens: int = limits.HELDOUT_TOKENS
    heldout_tokens: int = limits.HELDOUT_TOKENS
    score_rows: int = limits.SCORE_ROWS

    def __post_init__(self) -> None:
        check_common(self, COUNTS)
        check_lengths(self, {'pretrain': self.pretrain, 'recover': self.recover})
        _check_shrinks(self)
        _check_recipes(self)
        if not self.rates or list(self.rates) != sorted(set(self.rates)) or self.rates[0] <= 0:
            raise ValueError(f'study {self.name}: rates={self.rates}: at least one, all positive, '
                             'in ascending order')

    def replace(self, **fields: Any) -> Self:
        return dataclasses.replace(self, **fields)

    def model_with(self, experts: int) -> Config:
        """The model to pretrain with Z experts."""
        return self.model.with_experts(experts)

    def methods(self) -> tuple[Shrink, ...]:
        """The methods that statistics are collected for."""
        return self.shrinks

    @property
    def tuned_length(self) -> int:
        """Tokens in a row of the tasks."""
        return self.recover.length

    def recipe(self, label: str) -> Recipe:
        return next(recipe for recipe in self.recipes if recipe.label == label)


def _check_shrinks(study: RecoveryStudy) -> None:
    if not study.shrinks:
        raise ValueError(f'study {study.name}: shrinks: at least one')
    check_labels(study.name, [shrink.label for shrink in study.shrinks], 'shrink')
    least = study.model.topk
    for shrink in study.shrinks:
        if isinstance(shrink, Drop) and not least <= shrink.experts < study.experts:
            raise ValueError(f'study {study.name}: {shrink.label}: keep {least} to '
                             f'{study.experts - 1} of {study.experts} experts (topk={least}), not '
                             f'{shrink.experts}')
        if isinstance(shrink, Sparsify) and not 0 < shrink.sparsity < 1:
            raise ValueError(f'study {study.name}: {shrink.label}: sparsity={shrink.sparsity}: the '
                             'share of weights to set to zero, in (0, 1)')


def _check_recipes(study: RecoveryStudy) -> None:
    labels = [recipe.label for recipe in study.recipes]
    check_labels(study.name, labels, 'recipe')
    if study.ceiling not in labels:
        raise ValueError(f'study {study.name}: ceiling={study.ceiling!r}: the unshrunk model gets '
                         f'one of the recipes {labels}')
    if (recipe := study.recipe(study.ceiling)).distill or recipe.select:
        raise ValueError(f'study {study.name}: ceiling={recipe.label!r}: the unshrunk model has no '
                         'teacher and nothing to select; choose a recipe with neither')
