"""The layout of a run on a mesh that need not exist: by axis sizes alone, without a device.

N tokens of a device, D width, E experts, F hidden units of an expert, K choices per token.
"""

import math
from collections.abc import Mapping

from moe_jax.base import sharding
from moe_jax.config import Config
from moe_jax.experts import forms
from moe_jax.experts.forms import Form
from train.loop.options import TrainOptions

Axes = Mapping[str, int]


def check(axes: Axes, options: TrainOptions) -> None:
    """Refuse, with ValueError, axes no rule knows, and rows that do not divide over the mesh."""
    sharding.check_axes(axes)
    parts = row_parts(axes)
    if options.batch % parts:
        raise ValueError(f'batch={options.batch}: the mesh {dict(axes)} splits rows into {parts} '
                         f'parts; give a multiple of {parts}, or another mesh')


def devices(axes: Axes) -> int:
    """The number of devices of the mesh."""
    return math.prod(axes.values())


def row_axes(axes: Axes) -> tuple[str, ...]:
    """The axes over which the rows of a batch are split."""
    return sharding.row_axes_of(axes)


def row_parts(axes: Axes) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(axes[name] for name in row_axes(axes))


def split_by(axes: Axes, path: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """The axes over which a leaf is split, by the rules of `sharding`."""
    names: list[str] = []
    for part in sharding.fitted(axes, path, shape)[0]:
        names += (part,) if isinstance(part, str) else part or ()
    return tuple(names)


def parts(axes: Axes, names: tuple[str, ...]) -> int:
    """The number of devices of these axes together."""
    return math.prod(axes.get(name, 1) for name in names)


def form(cfg: Config, axes: Axes, layer: int) -> Form:
    """The form in which a MoE layer's tokens meet its experts."""
    split = forms.split_of(axes, (cfg.experts[layer], cfg.expert_hidden, cfg.width))
    return forms.form_of(axes, split, cfg.topk_in(layer))


def on_device(cfg: Config, axes: Axes) -> Config:
    """A config whose activations are those of one device: heads and hidden units that it holds.

    On a mesh the experts are dropless, whatever capacity drops.
    """
    if devices(axes) == 1:
        return cfg
    model = axes.get('model', 1)

    def share(size: int) -> int:
        return size // model if size % model == 0 else size

    heads, kv_heads = share(cfg.heads), share(cfg.kv_heads)
    return cfg.replace(
        heads=heads, kv_heads=kv_heads if heads % kv_heads == 0 else heads, capacity_train=None,
        mlp_hidden=share(cfg.mlp_hidden), shared_hidden=share(cfg.shared_hidden),
    )
