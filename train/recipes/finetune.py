"""Fine-tuning on a task, and warming the routers of a model that was just pruned."""

import dataclasses
import functools
from pathlib import Path

from moe_jax.base import sharding
from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.data import batches
from train.loop import feed
from train.loop.fit import Callback, fit
from train.loop.live import Report
from train.loop.logbook import Evaluate, History
from train.loop.options import TrainOptions
from train.loop.state import TrainState
from train.objectives.objective import Objective
from train.trainable.trainable import TRAINABLE


def finetune(
    cfg: Config,
    params: Params,
    packed: batches.Packed,
    options: TrainOptions,
    *,
    out: str | Path | None = None,
    progress: Report | None = None,
    evaluate: Evaluate | None = None,
    callback: Callback | None = None,
    objective: Objective | None = None,
    start: TrainState | None = None,
) -> tuple[Params, History]:
    """Train on packed rows {'tokens', 'segments', 'weights'} [rows, T]; (params, history).

    Everything else as in `fit`.
    """
    rows = feed.own_rows(sharding.mesh_of(params), options.batch)
    stream = functools.partial(batches.stream, packed, options.batch, options.seed, rows=rows)
    return fit(cfg, params, stream, options, out=out, progress=progress, evaluate=evaluate,
               callback=callback, objective=objective, start=start)


def warm_routers(
    cfg: Config,
    params: Params,
    packed: batches.Packed,
    options: TrainOptions,
    *,
    out: str | Path | None = None,
    progress: Report | None = None,
    evaluate: Evaluate | None = None,
) -> tuple[Params, History]:
    """`finetune` with everything but the routers frozen, whatever `options.trainable` says."""
    options = dataclasses.replace(options, trainable=TRAINABLE['routers'])
    return finetune(
        cfg, params, packed, options, out=out, progress=progress, evaluate=evaluate
    )
