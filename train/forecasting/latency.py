"""How long a forward pass takes on a mesh, by published figures of devices; measured: `cost`.

The other axis of UNCURL's question: what a larger number of experts costs in time, when the experts
are spread over devices. N tokens of a device, D width, E experts, K choices per token.
"""

import dataclasses

import jax.numpy as jnp

from moe_jax.base import sharding
from moe_jax.base.tree import leaves_with_paths
from moe_jax.config import Config
from moe_jax.experts import forms
from moe_jax.model import cost, decoder
from train.forecasting import mesh
from train.forecasting.forecast import EFFICIENCY
from train.forecasting.memory import FLOAT32, held
from train.forecasting.mesh import Axes
from train.forecasting.peaks import Peaks, peaks_of

START = 1e-5  # seconds that each exchange takes before its first byte; assumed


@dataclasses.dataclass(frozen=True)
class Latency:
    """Seconds of a forward pass on each device: products, its own memory, its links."""

    arithmetic: float
    moving: float
    sending: float

    @property
    def seconds(self) -> float:
        """Products run while weights are read; what is sent is waited for."""
        return max(self.arithmetic, self.moving) + self.sending


def forward_latency(
    cfg: Config,
    tokens: tuple[int, int],
    axes: Axes | None = None,
    peaks: Peaks | str = 'h100',
    *,
    efficiency: float = EFFICIENCY,
) -> Latency:
    """The latency of one forward pass over tokens [B, T], dropless, with weights in cfg.dtype.

    Of the experts a device holds, those are read that its group's tokens choose: with choices at
    random, a share of 1 - (1 - 1/E)^(choices). Raises ValueError for axes that no rule knows.
    """
    axes, peaks = dict(axes or {}), peaks_of(peaks) if isinstance(peaks, str) else peaks
    sharding.check_axes(axes)
    rows, length = tokens
    count, own = rows * length, -(-rows * length // mesh.row_parts(axes))
    rate = peaks.flops_float32 if cfg.dtype == 'float32' else peaks.flops
    flops = count * cost.count(cfg, length).flops / mesh.devices(axes)
    sent, starts = _sent(cfg, axes, own)
    return Latency(
        arithmetic=flops / (efficiency * rate),
        moving=_read(cfg, axes, own) / (efficiency * peaks.bandwidth),
        sending=sent / (efficiency * peaks.link) + starts * START,
    )


def _read(cfg: Config, axes: Axes, own: int) -> float:
    """Bytes of weights that a device reads."""
    each, total = jnp.dtype(cfg.dtype).itemsize, 0.0
    group = own * axes.get('expert', 1)
    for path, leaf in leaves_with_paths(decoder.shapes(cfg)):
        size = held(axes, path, tuple(leaf.shape)) * each / FLOAT32
        if '/moe/experts/' in path:
            layer, experts = int(path.split('/')[0].removeprefix('layer_')), leaf.shape[0]
            size *= 1 - (1 - 1 / experts) ** (group * cfg.topk_in(layer))
        if path in ('embed/tokens', 'embed/positions') and not (
                cfg.tied and path == 'embed/tokens'):
            size = 0.0  # read by row
        total += size
    return total


def _sent(cfg: Config, axes: Axes, own: int) -> tuple[float, int]:
    """Bytes that a device sends, and how often it starts to."""
    n, each, sent, starts = axes.get('expert', 1), jnp.dtype(cfg.dtype).itemsize, 0.0, 0
    for layer in cfg.moe_layers:
        how, topk = mesh.form(cfg, axes, layer), cfg.topk_in(layer)
        if how == 'exchange':
            sent += (n - 1) * forms.slots_of(axes, own * topk) * (2 * cfg.width * each + FLOAT32)
        elif how == 'gather':
            sent += (n - 1) * own * (cfg.width * (each + FLOAT32) + 2 * topk * FLOAT32)
        starts += 0 if how == 'local' else 2
    if (m := axes.get('model', 1)) > 1:
        sums = 2 * cfg.layers + 1
        sent += 2 * (m - 1) / m * sums * own * cfg.width * FLOAT32
        starts += sums
    if (f := axes.get('fsdp', 1)) > 1:
        whole = sum(held({**axes, 'fsdp': 1}, path, tuple(leaf.shape))
                    for path, leaf in leaves_with_paths(decoder.shapes(cfg)))
        sent += (f - 1) / f * whole * each / FLOAT32
        starts += cfg.layers
    return sent, starts
