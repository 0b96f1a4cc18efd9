"""Bytes that each device sends to others in a training step, from shapes alone.

N tokens of a device in a micro-batch, D width, K choices per token, V vocabulary, n devices of an
axis. Counted are rings: (n-1)/n of the whole for all-gather and reduce-scatter, twice that for
all-reduce, (n-1)/n of a device's buffer for all-to-all.
"""

from typing import NamedTuple

import jax.numpy as jnp

from moe_jax.base.tree import leaves_with_paths
from moe_jax.config import Config
from moe_jax.experts import forms
from moe_jax.layers import ffn
from moe_jax.model import decoder
from train.forecasting import mesh
from train.forecasting.memory import FLOAT32, held
from train.forecasting.mesh import Axes
from train.loop.options import TrainOptions
from train.trainable.resolved import TrainedLeaves


class Traffic(NamedTuple):
    """Bytes sent by each device per step, by kind of collective."""

    all_to_all: float = 0.0
    all_gather: float = 0.0
    reduce_scatter: float = 0.0
    all_reduce: float = 0.0

    @property
    def total(self) -> float:
        return sum(self)


def of_step(cfg: Config, options: TrainOptions, trained: TrainedLeaves, axes: Axes) -> Traffic:
    """What each device of a mesh with these axis sizes sends in one step.

    Gradients are summed once for each micro-batch, parameters that 'fsdp' splits gathered once, and
    an exchange takes one round, which routing as balanced as `forms.SLACK` allows needs.
    """
    tokens = options.batch // mesh.row_parts(axes) * options.length
    parts = [_weights(cfg, trained, axes), _experts(cfg, axes, tokens), _model(cfg, axes, tokens)]
    return Traffic(*(options.accumulate * sum(kind) for kind in zip(*parts, strict=True)))


def _weights(cfg: Config, trained: TrainedLeaves, axes: Axes) -> Traffic:
    """Sums of gradients over the axes that split rows, and parameters gathered over 'fsdp'."""
    params, shards = decoder.shapes(cfg), axes.get('fsdp', 1)
    gathered = scattered = reduced = 0.0
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves_with_paths(params)}
    for path, shape in (shapes | trained.shapes).items():
        split = mesh.split_by(axes, path, shape)
        size = held(axes, path, shape)
        summed = mesh.parts(axes, tuple(a for a in mesh.row_axes(axes) if a not in split))
        if 'fsdp' in split:
            gathered += (shards - 1) * size
            scattered += (shards - 1) * size * (path in trained.shapes)
        reduced += 2 * (summed - 1) / summed * size * (path in trained.shapes)
    return Traffic(all_gather=gathered, reduce_scatter=scattered, all_reduce=reduced)


def _experts(cfg: Config, axes: Axes, tokens: int) -> Traffic:
    """Tokens on their way to experts of other devices and back, in both passes.

    An exchange sends rows of D numbers twice forward and three times backward; a gather sends what
    enters the experts in the compute dtype and what leaves them in float32.
    """
    n, each = axes.get('expert', 1), jnp.dtype(cfg.dtype).itemsize
    exchanged = gathered = scattered = 0.0
    for layer in cfg.moe_layers:
        how, topk = mesh.form(cfg, axes, layer), cfg.topk_in(layer)
        if how == 'exchange':
            rows = forms.slots_of(axes, tokens * topk)
            exchanged += (n - 1) * rows * (5 * cfg.width * each + 2 * FLOAT32)
        elif how == 'gather':
            gathered += (n - 1) * tokens * (cfg.width * (each + FLOAT32) + 2 * topk * FLOAT32)
            scattered += (n - 1) * tokens * (cfg.width * (each + FLOAT32) + topk * FLOAT32)
    return Traffic(all_to_all=exchanged, all_gather=gathered, reduce_scatter=scattered)


def _model(cfg: Config, axes: Axes, tokens: int) -> Traffic:
    """Sums over 'model' of [N, D], float32, after every product whose inner axis it splits.

    Forward one for each attention, feed-forward or expert layer, and for the token table; backward
    one for each matrix that the layer's input meets, and for the head.
    """
    n = axes.get('model', 1)
    if n == 1:
        return Traffic()
    inputs = 1 if cfg.ffn in ffn.UNGATED else 2
    dense = cfg.layers - len(cfg.moe_layers)
    sums = cfg.layers * (1 + 3) + dense * (1 + inputs) + 2
    for layer in cfg.moe_layers:
        others = axes['expert'] if mesh.form(cfg, axes, layer) == 'gather' else 1
        sums += (1 + 2) * others + (1 + inputs if cfg.shared_hidden else 0)
    return Traffic(all_reduce=2 * (n - 1) / n * sums * tokens * cfg.width * FLOAT32)
