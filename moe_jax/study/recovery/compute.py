"""The computation of the cells of a recovery study, from a cell to JSON outputs.

Letters: N rows, T tokens of a row.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

import prune
import train
from moe_jax.base.tree import Params
from moe_jax.calibration.observe import observe
from moe_jax.config import Config
from moe_jax.data import batches
from moe_jax.evals.tasks import evaluate
from moe_jax.inference.score import score
from moe_jax.study import records
from moe_jax.study.cell import Cell
from moe_jax.study.recovery.cells import NONE, label, shrink_options
from moe_jax.study.recovery.spec import Drop, Shrink, Sparsify
from moe_jax.study.workshop import (
    Outputs,
    Workshop,
    domain_losses,
    examples,
    pretrain,
    reporting,
)
from train.loop.options import TrainOptions
from train.trainable.resolved import resolve

INSIDE = 'moe/experts/'  # whose zeros a sparse model keeps while it trains
Rows = Mapping[str, np.ndarray]


class Run(NamedTuple):
    """A trained model, its learning rate, its seconds, and the number of trained parameters."""

    params: Params
    rate: float | None = None
    seconds: float = 0.0
    trained: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Shrunk:
    """A model to recover and, where it was shrunk, the plan that made it."""

    cfg: Config
    params: Params
    plan: prune.Plan | None


def recover(shop: Workshop, cell: Cell) -> Outputs:
    """Shrink (or not), train with the recipe (or not), and score."""
    study, about = shop.study, cell.about
    shrunk = _shrunk(shop, cell)
    run, losses = _recovered(shop, cell, shrunk)
    results = evaluate(shrunk.cfg, run.params, shop.material.tasks[about['task']].validation,
                       study.score_rows)
    zeros = [share for layer in prune.sparsity(run.params).values() for share in layer.values()]
    return {
        'rate': run.rate,
        'search': {'rates': list(study.rates), 'losses': losses} if losses else None,
        'loss': round(-results.mean, 6),
        'accuracy': None if results.accuracy is None else round(results.accuracy, 6),
        'examples': examples(results),
        'domains': domain_losses(shop, shrunk.cfg, run.params),
        'trained': run.trained,
        'zeros': round(float(np.mean(zeros)), 6),
        'train_seconds': round(run.seconds, 2),
    }


COMPUTE: dict[str, Callable[[Workshop, Cell], Outputs]] = {
    'pretrain': pretrain, 'recover': recover,
}


def rows_loss(cfg: Config, params: Params, packed: Rows, rows: int) -> float:
    """Weighted mean cross-entropy of packed rows [N, T], nats per token that is predicted."""
    total = weight = 0.0
    for batch in batches.heldout(packed, rows):
        log_probs = np.asarray(score(cfg, params, batch['tokens'], batch['segments']), np.float64)
        counted = batch['weights'][:, 1:].astype(np.float64)
        total += float((log_probs * counted).sum())
        weight += float(counted.sum())
    return -total / weight


def _plan_drop(shrink: Drop, shop: Workshop, cell: Cell, cfg: Config, params: Params) -> prune.Plan:
    about = cell.about
    stats = shop.stats(about['experts'], about['seed'], about['task'])
    return prune.plan(shrink.name, stats, params, cfg, experts=shrink.experts,
                      **shrink_options(shrink, about['seed']))


def _plan_sparse(shrink: Sparsify, shop: Workshop, cell: Cell, cfg: Config, params: Params
                 ) -> prune.Plan:
    about = cell.about
    stats = shop.stats(about['experts'], about['seed'], about['task'])
    return prune.sparsify(shrink.name, stats, params, cfg, sparsity=shrink.sparsity,
                          pattern=shrink.pattern, **shrink_options(shrink, about['seed']))


PLANS: dict[type[Shrink], Callable[..., prune.Plan]] = {
    Drop: _plan_drop, Sparsify: _plan_sparse,
}


def _shrunk(shop: Workshop, cell: Cell) -> Shrunk:
    about = cell.about
    cfg, params = shop.model(about['experts'], about['seed'])
    shrink = next((s for s in shop.study.shrinks if label(s) == about['shrink']), None)
    if shrink is None:
        return Shrunk(cfg, params, None)
    plan = PLANS[type(shrink)](shrink, shop, cell, cfg, params)
    small, small_cfg = prune.apply(params, cfg, plan)
    return Shrunk(small_cfg, small, plan)


def _recovered(shop: Workshop, cell: Cell, shrunk: Shrunk) -> tuple[Run, list[float | None]]:
    """The run of a cell, and the losses of a search if it makes one."""
    if cell.about['recipe'] == NONE:
        return Run(shrunk.params), []
    options = _options(shop, cell, shrunk)
    if 'rates' in cell.inputs:
        return _search(shop, cell, shrunk, options)
    rate = records.read(shop.folder)[cell.inputs['searched']]['outputs']['rate']
    return _train(shop, cell, shrunk, dataclasses.replace(options, peak_lr=rate)), []


def _search(shop: Workshop, cell: Cell, shrunk: Shrunk, options: TrainOptions
            ) -> tuple[Run, list[float | None]]:
    """Train once at every rate: the run with the lowest loss on the rows kept back, and all losses.

    A rate at which training diverges has no loss. Raises ValueError if all rates diverge.
    """
    study, kept = shop.study, _tuning_rows(shop, cell.about['task'])
    best, least, losses = None, math.inf, []
    for rate in study.rates:
        try:
            run = _train(shop, cell, shrunk, dataclasses.replace(options, peak_lr=rate))
            loss = rows_loss(shrunk.cfg, run.params, kept, study.score_rows)
        except train.Diverged:
            run, loss = None, math.nan
        losses.append(round(loss, 6) if math.isfinite(loss) else None)
        if loss < least:
            best, least = run, loss
    if best is None:
        raise ValueError(f'no rate of {study.rates} trains without diverging; give lower ones')
    return best, losses


def _train(shop: Workshop, cell: Cell, shrunk: Shrunk, options: TrainOptions) -> Run:
    """One run of a cell's recipe."""
    about = cell.about
    recipe, rows = shop.study.recipe(about['recipe']), _training_rows(shop, about['task'])
    trained = resolve(shrunk.params, options.trainable)
    count = sum(math.prod(shape) for shape in trained.shapes.values())
    report, start = reporting(shop, cell.title, options), time.perf_counter()
    if recipe.distill is None:
        params, _ = train.finetune(shrunk.cfg, shrunk.params, rows, options, progress=report)
    else:
        teacher = shop.model(about['experts'], about['seed'])
        assert shrunk.plan is not None  # distillation is of what a plan made
        params, _ = train.distill(shrunk.cfg, shrunk.params, teacher, rows, options, recipe.distill,
                                  stands_for=prune.stands_for(shrunk.plan), progress=report)
    return Run(params, options.peak_lr, time.perf_counter() - start, count)


def _options(shop: Workshop, cell: Cell, shrunk: Shrunk) -> TrainOptions:
    """The options of a cell's recipe at any rate: trained parameters, and zeros of a plan kept."""
    recipe = shop.study.recipe(cell.about['recipe'])
    trains = recipe.trains
    if recipe.select is not None:
        trains = train.Trainable(experts=_selected(shop, cell, recipe.select, shrunk))
    options = dataclasses.replace(shop.study.recover, seed=cell.about['seed'], trainable=trains)
    sparse = shrunk.plan is not None and any(p.masks for p in shrunk.plan.layers.values())
    touched = any(INSIDE in path for path in resolve(shrunk.params, trains).by_path)
    return dataclasses.replace(options, keep_zeros=INSIDE if sparse and touched else None)


def _selected(shop: Workshop, cell: Cell, share: float, shrunk: Shrunk) -> dict[int, np.ndarray]:
    """The experts of a shrunk model that get a share of the task's choices."""
    rows = shop.study.score_rows
    packed = shop.material.tasks[cell.about['task']].train
    limit = max(1, shop.study.observe_tokens // (rows * packed['tokens'].shape[1]))
    stats = observe(shrunk.cfg, shrunk.params, batches.heldout(packed, rows)[:limit])
    return prune.select_experts(stats, shrunk.cfg, by='tokens', share=share)


def _training_rows(shop: Workshop, task: str) -> Rows:
    return {k: v[:-shop.study.tuning_rows] for k, v in shop.material.tasks[task].train.items()}


def _tuning_rows(shop: Workshop, task: str) -> Rows:
    return {k: v[-shop.study.tuning_rows:] for k, v in shop.material.tasks[task].train.items()}
