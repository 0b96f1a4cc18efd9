"""Pretraining: fresh weights and a mixture of packed corpora, on the one loop."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from moe_jax.config import Config
from moe_jax.data import batches
from moe_jax.model import init
from train.live import Report
from train.loop import Evaluate, History, fit
from train.options import TrainOptions


def pretrain(
    cfg: Config,
    sets: Sequence[tuple[batches.Packed, float]],
    options: TrainOptions,
    *,
    out: str | Path | None = None,
    progress: Report | None = None,
    evaluate: Evaluate | None = None,
) -> tuple[Any, History]:
    """Train a fresh model on packed sets mixed by weight; weights and data follow `options.seed`.

    Returns (params, history) as `fit` does.
    """
    params = init(cfg, jax.random.key(options.seed))
    stream = functools.partial(batches.mixture, sets, options.batch, options.seed)
    return fit(cfg, params, stream, options, out=out, progress=progress, evaluate=evaluate)
