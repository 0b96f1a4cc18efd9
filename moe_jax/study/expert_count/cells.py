"""The cells of an expert-count study: models, their cost, and every pair on every task."""

import dataclasses
import json
from typing import Any

import prune
from moe_jax.study.cell import SCORED, Cell, deciding, pretrain_cell, tokens
from moe_jax.study.expert_count.spec import Method, Study
from moe_jax.study.material import Material
from train.loop.options import TrainOptions

ROUTER_ONLY = 0.8  # work of a token that trains routers alone, for the time estimate only
# The rounds of latency over devices, and the devices it is modelled for.
PARALLEL_ROUNDS, MODELLED = 9, ('h100', 'v5e')


def cells(study: Study, material: Material) -> list[Cell]:
    """All cells of a study, in the order to run them: cells that others need come first."""
    cells = []
    for seed in study.seeds:
        models = {z: pretrain_cell(study, material, z, seed) for z in study.experts}
        cells += models.values()
        cells += [_usage(study, material, models[z], seed) for z in study.experts]
        if seed == study.seeds[0]:
            cells += [_latency(study, seed), _parallel(study, seed)]
            cells += [_embedding(study, material, models[z], z, g, seed) for z, g in study.pairs]
        for task in study.tasks:
            cells += [_score(study, material, models[z], task, z, g, method, seed)
                      for z, g, method in compared(study)]
    return cells


def compared(study: Study) -> list[tuple[int, int, Method | None]]:
    """(Z, G, method) of every model that is recovered and scored; method None is not shrunk."""
    return [
        *((z, z, None) for z in study.experts),
        *((z, g, study.main) for z, g in study.pairs),
        *((z, g, rival) for rival in study.rivals for z, g in study.rival_pairs),
    ]


def stage_options(study: Study, seed: int) -> dict[str, TrainOptions]:
    """The recovery's stages by name, seeded for one run."""
    stages = {name: getattr(study.recovery, name) for name in ('warm', 'prefinetune', 'finetune')}
    return {name: dataclasses.replace(s, seed=seed) for name, s in stages.items()}


def method_options(method: Method, seed: int) -> dict[str, Any]:
    """The options of a method in one run: its own seed, where it has one, is the run's."""
    seeded = {'seed': seed} if 'seed' in prune.options(method.name) else {}
    return seeded | dict(method.options)


def _method(method: Method | None, seed: int) -> dict[str, Any] | None:
    if method is None:
        return None
    return {'name': method.name, 'options': method_options(method, seed)}


def _usage(study: Study, material: Material, model: Cell, seed: int) -> Cell:
    inputs = {'model': model.id, 'data': material.digest, 'capacity': study.capacity,
              'rows': study.score_rows}
    return Cell('usage', inputs, {'experts': model.about['experts'], 'seed': seed},
                SCORED * study.heldout_tokens * len(material.heldout))


def _latency(study: Study, seed: int) -> Cell:
    counts = sorted({*study.experts, *(g for _, g in study.pairs)})
    inputs = {'model': json.loads(study.model.to_json()), 'experts': counts,
              'rows': study.score_rows, 'length': study.pretrain.length,
              'capacity': study.capacity}
    return Cell('latency', inputs, {'seed': seed},
                SCORED * len(counts) * 15 * study.score_rows * study.pretrain.length)


def _parallel(study: Study, seed: int) -> Cell:
    one = _latency(study, seed)
    inputs = {**one.inputs, 'degrees': list(study.parallel), 'rounds': PARALLEL_ROUNDS,
              'devices': list(MODELLED)}
    return Cell('parallel', inputs, one.about, one.work)


def _embedding(study: Study, material: Material, model: Cell, z: int, g: int, seed: int) -> Cell:
    task = study.tasks[0]
    inputs = {'model': model.id, 'keep': g, 'method': _method(study.main, seed),
              'task': material.tasks[task].digest, 'tokens': study.observe_tokens,
              'capacity': study.capacity, 'rows': study.score_rows,
              'coordinates': (1, 3) if g > 2 else (0, 2)}
    return Cell('embedding', inputs, {'experts': z, 'keep': g, 'task': task, 'seed': seed},
                SCORED * study.observe_tokens)


def _score(study: Study, material: Material, model: Cell, task: str, z: int, g: int,
           method: Method | None, seed: int) -> Cell:
    stages = stage_options(study, seed)
    inputs = {
        'model': model.id, 'keep': g, 'method': _method(method, seed), 'data': material.digest,
        'task': material.tasks[task].digest, 'capacity': study.capacity,
        'others': {n: m.digest for n, m in sorted(material.tasks.items()) if n != task},
        'stages': {name: deciding(options) for name, options in stages.items()},
        'text_share': study.recovery.text_share, 'tokens': study.observe_tokens,
        'rows': study.score_rows,
    }
    work = tokens(stages['warm']) * ROUTER_ONLY
    work += tokens(stages['prefinetune']) + tokens(stages['finetune'])
    work += SCORED * study.heldout_tokens * (len(stages) + 1 + len(material.heldout))
    label = 'none' if method is None else method.label
    about = {'experts': z, 'keep': g, 'method': label, 'task': task, 'seed': seed}
    return Cell('score', inputs, about, work)
