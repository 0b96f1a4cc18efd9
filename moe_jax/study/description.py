"""The record that describes a study to a report; its 'cells' are the ids that belong to it."""

import dataclasses
import json
import os
import platform
from importlib import metadata
from typing import Any

import jax

from moe_jax.study.cell import Cell, tokens
from moe_jax.study.expert_count.cells import stage_options
from moe_jax.study.expert_count.spec import Study
from moe_jax.study.material import Material
from moe_jax.study.recovery.spec import RecoveryStudy
from prune.catalog import registry
from train.loop.options import TrainOptions

PACKAGES = ('moe-jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'scipy', 'tokenizers')


def expert_count(study: Study, stuff: Material, todo: list[Cell]) -> dict[str, Any]:
    """The record of an expert-count study."""
    keep: dict[str, list[int]] = {}
    for z, g in study.pairs:
        keep.setdefault(str(z), []).append(g)
    stages = {'pretrain': study.pretrain} | stage_options(study, 0)
    return common(study, stuff, todo, stages, {
        'experts': list(study.experts),
        'keep': keep,
        'methods': [method.label for method in study.methods()],
    })


def recovery(study: RecoveryStudy, stuff: Material, todo: list[Cell]) -> dict[str, Any]:
    """The record of a recovery study."""
    stages = {'pretrain': study.pretrain, 'recover': study.recover}
    return common(study, stuff, todo, stages, {
        'about': 'recovery',
        'experts': study.experts,
        'model': json.loads(study.model_with(study.experts).to_json()),
        'shrinks': [dataclasses.asdict(shrink) | {
            'kind': type(shrink).__name__, 'title': registry.title(shrink.name)}
            for shrink in study.shrinks],
        'recipes': [dataclasses.asdict(recipe) for recipe in study.recipes],
        'ceiling': study.ceiling,
        'rates': list(study.rates),
        'tuning_rows': study.tuning_rows,
    })


def common(study: Study | RecoveryStudy, stuff: Material, todo: list[Cell],
           stages: dict[str, TrainOptions], own: dict[str, Any]) -> dict[str, Any]:
    """The record of any study; `own` holds the fields that are specific to its kind."""
    return {'id': 'study', 'kind': 'study', 'outputs': {
        'name': study.name,
        'description': study.description,
        'tasks': list(study.tasks),
        'task_notes': {name: task.note for name, task in stuff.tasks.items()},
        'seeds': list(study.seeds),
        'steps': {n: s.steps for n, s in stages.items()},
        'tokens': {n: int(tokens(s)) for n, s in stages.items()},
        'model': json.loads(study.model.to_json()),
        'data': {'corpus': stuff.source, 'digest': stuff.digest},
        'machine': machine(),
        'versions': {name: metadata.version(name) for name in PACKAGES},
        'cells': [cell.id for cell in todo],
    } | own}


def machine() -> dict[str, Any]:
    """The machine that the numbers come from, without names of hosts or users."""
    return {'devices': [d.device_kind for d in jax.devices()], 'cores': os.cpu_count(),
            'processor': platform.machine(), 'python': platform.python_version()}
