"""How a run lies on a mesh that need not exist: by axis sizes alone, no device is looked for.

N tokens of a device, D width, E experts, F hidden units of an expert, K choices per token.
"""

import math
from collections.abc import Mapping

from moe_jax.base import sharding
from moe_jax.config import Config
from moe_jax.experts import parallel
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
    """How many devices the mesh has."""
    return math.prod(axes.values())


def row_axes(axes: Axes) -> tuple[str, ...]:
    """The axes over which the rows of a batch are split."""
    return tuple(name for name in sharding.ROWS if axes.get(name, 1) > 1)


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
    """How many devices these axes have together."""
    return math.prod(axes.get(name, 1) for name in names)


def form(cfg: Config, axes: Axes, layer: int) -> str:
    """How a MoE layer's tokens meet its experts: a form of `moe_jax.experts.parallel`, by its rule.
    """
    shape = (cfg.experts[layer], cfg.expert_hidden, cfg.width)
    by_expert, by_hidden = sharding.hidden_axes(axes, shape)
    if not by_expert and 'expert' not in by_hidden:
        return 'local'
    gathers = not by_expert or cfg.topk_in(layer) >= axes['expert']
    return 'gather' if gathers else 'exchange'


def slots(axes: Axes, choices: int) -> int:
    """Rows that two devices of 'expert' exchange in one round, of N*K choices on each."""
    mean = math.ceil(parallel.SLACK * choices / axes['expert'])
    return min(choices, -(-mean // 8) * 8)


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
