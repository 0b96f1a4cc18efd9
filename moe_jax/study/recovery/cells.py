"""The cells of a recovery study: pretraining, then every model on every task.

The cell of a recipe searches its rate with the first seed; those of other seeds take it from there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import prune
from moe_jax.study.cell import SCORED, Cell, deciding, pretrain_cell, tokens
from moe_jax.study.material import Material
from moe_jax.study.recovery.spec import Drop, Recipe, RecoveryStudy, Shrink, Sparsify

NONE = 'none'  # no shrinking, or no recovery
DISTILLED = 1.6  # work of a token that a teacher reads too, for the time estimate only
# The options of each way of shrinking, and their defaults.
OPTIONS: dict[type[Shrink], Callable[[str], dict[str, Any]]] = {
    Drop: prune.options, Sparsify: prune.weight_options,
}


def cells(study: RecoveryStudy, material: Material) -> list[Cell]:
    """All cells of a study, in the order to run them; ValueError for a task with too few rows."""
    _check_rows(study, material)
    found, searched = [], {}
    for seed in study.seeds:
        model = pretrain_cell(study, material, study.experts, seed)
        found.append(model)
        for task in study.tasks:
            for shrink, recipe in recovered(study):
                key = task, label(shrink), label(recipe)
                cell = _recover(study, material, model, task, shrink, recipe, seed,
                                searched.get(key))
                searched.setdefault(key, cell)
                found.append(cell)
    return found


def recovered(study: RecoveryStudy) -> list[tuple[Shrink | None, Recipe | None]]:
    """The scored models: the unshrunk model and each shrunk one, before and after recovery."""
    ceiling = study.recipe(study.ceiling)
    return [(None, None), (None, ceiling),
            *((shrink, recipe) for shrink in study.shrinks for recipe in (None, *study.recipes))]


def label(chosen: Shrink | Recipe | None) -> str:
    return NONE if chosen is None else chosen.label


def shrink_options(shrink: Shrink, seed: int) -> dict[str, Any]:
    """The options of a method in one run: its own seed, where it has one, is the run's."""
    seeded = {'seed': seed} if 'seed' in OPTIONS[type(shrink)](shrink.name) else {}
    return seeded | dict(shrink.options)


def _check_rows(study: RecoveryStudy, material: Material) -> None:
    for task in study.tasks:
        rows = len(material.tasks[task].train['tokens'])
        if rows < study.tuning_rows + study.recover.batch:
            raise ValueError(f'study {study.name}: task {task!r} has {rows} rows to train on, '
                             f'fewer than tuning_rows={study.tuning_rows} and a batch of '
                             f'{study.recover.batch}; give fewer tuning_rows, or more text')


def _inputs(study: RecoveryStudy, material: Material, model: Cell, task: str,
            shrink: Shrink | None, seed: int) -> dict[str, Any]:
    how = None
    if shrink is not None:
        how = {name: value for name, value in dataclasses.asdict(shrink).items() if name != 'label'}
        how |= {'kind': type(shrink).__name__, 'options': shrink_options(shrink, seed)}
    return {'model': model.id, 'shrink': how, 'task': material.tasks[task].digest,
            'data': material.digest, 'tuning_rows': study.tuning_rows, 'rows': study.score_rows,
            'tokens': study.observe_tokens, 'capacity': study.capacity}


def _training(study: RecoveryStudy, recipe: Recipe, seed: int) -> dict[str, Any]:
    options = dataclasses.replace(study.recover, seed=seed)
    how = {name: value for name, value in dataclasses.asdict(recipe).items() if name != 'label'}
    deciders = {name: value for name, value in deciding(options).items() if name != 'peak_lr'}
    return {'recipe': how, 'options': deciders}


def _work(study: RecoveryStudy, recipe: Recipe) -> float:
    return tokens(study.recover) * (DISTILLED if recipe.distill else 1.0)


def _recover(study: RecoveryStudy, material: Material, model: Cell, task: str,
             shrink: Shrink | None, recipe: Recipe | None, seed: int, searched: Cell | None
             ) -> Cell:
    inputs = _inputs(study, material, model, task, shrink, seed)
    work = SCORED * study.heldout_tokens * (1 + len(material.heldout))
    if recipe is not None:
        inputs |= _training(study, recipe, seed)
        inputs |= {'rates': list(study.rates)} if searched is None else {'searched': searched.id}
        work += _work(study, recipe) * (len(study.rates) if searched is None else 1)
    about = {'experts': study.experts, 'shrink': label(shrink), 'recipe': label(recipe),
             'task': task, 'seed': seed}
    return Cell('recover', inputs, about, work)
