"""Pretraining: fresh weights and a mixture of packed corpora, on the one loop."""

import functools
from collections.abc import Sequence
from pathlib import Path

import jax

from moe_jax.base import sharding
from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.data import batches
from moe_jax.model.decoder import init, shapes
from train.loop import feed
from train.loop.fit import fit
from train.loop.live import Report
from train.loop.logbook import Evaluate, History
from train.loop.options import TrainOptions


def pretrain(
    cfg: Config,
    sets: Sequence[tuple[batches.Packed, float]],
    options: TrainOptions,
    *,
    out: str | Path | None = None,
    progress: Report | None = None,
    evaluate: Evaluate | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[Params, History]:
    """Train a fresh model on packed sets mixed by weight; weights and data follow `options.seed`.

    mesh: what to train on (None: one device); the fresh weights are the same on every mesh, and no
    device makes more than its share of them. Returns (params, history) as `fit` does.
    """
    key = jax.random.key(options.seed)
    if mesh is None:
        params = init(cfg, key)
    else:
        where = sharding.shardings(shapes(cfg), mesh)
        params = jax.jit(init, static_argnums=0, out_shardings=where)(cfg, key)
    stream = functools.partial(batches.mixture, sets, options.batch, options.seed,
                               rows=feed.own_rows(mesh, options.batch))
    return fit(cfg, params, stream, options, out=out, progress=progress, evaluate=evaluate)
