"""The computation of each kind of cell of an expert-count study, from a cell to JSON outputs.

Letters: Z experts pretrained with, G experts left, E experts of a layer.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

import prune
import train
from moe_jax.base.tree import Params
from moe_jax.calibration.observe import observe
from moe_jax.config import Config
from moe_jax.data import batches
from moe_jax.evals.scores import Scores
from moe_jax.evals.tasks import evaluate
from moe_jax.model import cost
from moe_jax.study import parallel as devices
from moe_jax.study.cell import Cell
from moe_jax.study.clock import forward_milliseconds
from moe_jax.study.expert_count.cells import method_options, stage_options
from moe_jax.study.expert_count.spec import Method
from moe_jax.study.workshop import (
    Outputs,
    Workshop,
    domain_losses,
    examples,
    pretrain,
    reporting,
)
from train.forecasting.latency import forward_latency
from train.loop.options import TrainOptions

LATENCY_ROUNDS = 15


def plan(shop: Workshop, cell: Cell, method: Method) -> prune.Plan:
    """The plan of a cell by a method, from the statistics of the cell's task."""
    about = cell.about
    cfg, params = shop.model(about['experts'], about['seed'])
    stats = shop.stats(about['experts'], about['seed'], about['task'])
    options = method_options(method, about['seed'])
    return prune.plan(method.name, stats, params, cfg, experts=about['keep'], **options)


def score(shop: Workshop, cell: Cell) -> Outputs:
    """Shrink (or not), recover and score one model on one task; scored after every stage."""
    about, study = cell.about, shop.study
    cfg, params = shop.model(about['experts'], about['seed'])
    method = next((m for m in study.methods() if m.label == about['method']), None)
    if method is not None:
        params, cfg = prune.apply(params, cfg, plan(shop, cell, method))
    task, step = shop.material.tasks[about['task']], 0
    results = evaluate(cfg, params, task.validation, study.score_rows)
    stages = [_stage('shrunk', step, results)]
    for name, options in stage_options(study, about['seed']).items():
        params = _train_stage(shop, cell, name, options, cfg, params)
        step += options.steps
        results = evaluate(cfg, params, task.validation, study.score_rows)
        stages.append(_stage({'warm': 'warmed'}.get(name, f'{name}d'), step, results))
    return {
        'stages': stages,
        'examples': examples(results),
        'domains': domain_losses(shop, cfg, params),
        'router_rows': [cfg.router_rows(i) for i in cfg.moe_layers],
    }


def usage(shop: Workshop, cell: Cell) -> Outputs:
    """Share of each domain's held-out tokens that every expert gets, layer by layer."""
    cfg, params = shop.model(cell.about['experts'], cell.about['seed'])
    rows = shop.study.score_rows
    stats = observe(cfg, params, (
        {**batch, 'group': domain}
        for domain, texts in shop.material.heldout.items()
        for batch in batches.heldout(texts.packed, rows)
    ))
    domains = sorted(stats.groups)
    return {'domains': domains, 'layers': {
        str(i): [_shares(stats.layer(i, domain)['count']) for domain in domains]
        for i in stats.layers
    }}


def latency(shop: Workshop, cell: Cell) -> Outputs:
    """Milliseconds of a forward pass by expert count, in interleaved rounds of one run."""
    study, counts = shop.study, cell.inputs['experts']
    shape = (study.score_rows, study.pretrain.length)
    milliseconds = forward_milliseconds(
        [shop.after_pretraining(study.model_with(n)) for n in counts], shape, LATENCY_ROUNDS
    )
    sizes = {str(n): 4 * cost.count(study.model_with(n)).total for n in counts}
    return {
        'experts': counts, 'tokens': shape[0] * shape[1], 'parameters': sizes,
        'milliseconds': {str(n): times for n, times in zip(counts, milliseconds, strict=True)},
    }


def parallel(shop: Workshop, cell: Cell) -> Outputs:
    """Milliseconds of a forward pass by number of experts and of devices they are spread over."""
    study, inputs = shop.study, cell.inputs
    shape = (study.score_rows, study.pretrain.length)
    configs = {n: study.model_with(n).replace(capacity_train=None, capacity_eval=None)
               for n in inputs['experts']}
    measured = devices.measured([c.to_json() for c in configs.values()], inputs['degrees'], shape,
                             inputs['rounds'])
    return {
        'tokens': shape[0] * shape[1],
        'milliseconds': dict(zip(map(str, configs), measured, strict=True)),
        'modelled': {name: {str(count): {
            str(n): 1000 * forward_latency(cfg, shape, {'expert': n}, name).seconds
            for n in inputs['degrees']} for count, cfg in configs.items()}
            for name in inputs['devices']},
    }


def embedding(shop: Workshop, cell: Cell) -> Outputs:
    """The main method's spectral embedding and clusters of every layer's router.

    The picture takes the second and third coordinate: the first, of the eigenvalue 0, is nearly the
    same for all experts.
    """
    first, last = cell.inputs['coordinates']
    made = plan(shop, cell, shop.study.main)
    stats = shop.stats(cell.about['experts'], cell.about['seed'], cell.about['task'])
    layers = {}
    for i, layer in made.layers.items():
        if 'embedding' not in layer.notes:
            continue
        points = np.asarray(layer.notes['embedding'], np.float64)
        points = np.pad(points, ((0, 0), (0, max(0, last - points.shape[1]))))[:, first:last]
        layers[str(i)] = {
            'points': points.round(5).tolist(),
            'labels': np.asarray(layer.notes['labels']).tolist(),
            'count': stats.layer(i)['count_top1'].tolist(),
        }
    return {'layers': layers}


COMPUTE: dict[str, Callable[[Workshop, Cell], Outputs]] = {
    'pretrain': pretrain, 'score': score, 'usage': usage, 'latency': latency,
    'parallel': parallel,
    'embedding': embedding,
}


def _train_stage(shop: Workshop, cell: Cell, name: str, options: TrainOptions, cfg: Config,
                 params: Params) -> Params:
    """One stage of recovery; every model sees the same rows in the same order."""
    task = shop.material.tasks[cell.about['task']]
    report = reporting(shop, cell.title, options)
    if name == 'warm':
        return train.warm_routers(cfg, params, task.train, options, progress=report)[0]
    if name == 'finetune':
        return train.finetune(cfg, params, task.train, options, progress=report)[0]
    share = shop.study.recovery.text_share
    others = [m.train for n, m in sorted(shop.material.tasks.items()) if n != task.name]
    text = list(shop.material.mixed.values())
    sets = [(rows, share / len(text)) for rows in text]
    sets += [(rows, (1 - share) / len(others)) for rows in others if share < 1]
    return train.fit(
        cfg, params, lambda start: batches.mixture(sets, options.batch, options.seed, start),
        options, progress=report,
    )[0]


def _stage(name: str, step: int, scores: Scores) -> dict[str, Any]:
    accuracy = None if scores.accuracy is None else round(scores.accuracy, 6)
    return {'stage': name, 'step': step, 'log_likelihood': round(scores.mean, 6),
            'accuracy': accuracy}


def _shares(count: np.ndarray) -> list[float]:
    return (count / max(1, count.sum())).round(5).tolist()
