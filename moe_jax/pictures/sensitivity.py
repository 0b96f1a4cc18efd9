"""The error of each layer's output against experts kept: which layers can lose experts."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from moe_jax.pictures import style
from moe_jax.pictures.seen import Layers, chosen

Curves = Mapping[int, Mapping[int, float]]


@style.look()
def sensitivity(curves: Curves, *, layers: Layers = None) -> Figure:
    """Error against experts kept, a line per layer, and each layer's error with half the experts.

    curves: {layer: {experts kept: relative error}} as `prune.sensitivity` gives them; 1 is as bad
      as a layer that gives nothing. Half is of the largest count of the layer's curve. A layer
      with one count alone is left out.
    """
    drawn = [i for i in chosen('sensitivity', tuple(curves), layers) if len(curves[i]) > 1]
    if not drawn:
        raise ValueError('sensitivity: a curve needs two counts of experts or more')
    half = {i: halved(curves[i]) for i in drawn}
    figure, axes = style.canvas(
        max(3.9, 1.6 + 0.17 * len(drawn)), _finding(half),
        "Squared error of the layer's output over its size, without retraining; 100%: as bad as no "
        'output at all', 1, 2, width_ratios=(3, 2),
    )
    left, right = axes.flat
    colors = style.ramp(len(drawn))
    for i, color in zip(drawn, colors, strict=True):
        counts = sorted(curves[i])
        left.plot(counts, [100 * curves[i][c] for c in counts], color=color, zorder=3,
                  marker='o' if len(counts) <= 16 else '', markersize=4, label=f'layer {i}')
    if max(max(curves[i].values()) for i in drawn) > 1:
        left.axhline(100, color=style.SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
    left.set_ylim(bottom=0)
    left.set_xlabel('experts kept')
    left.set_ylabel('relative error, %')
    style.quiet_grid(left)
    _ranking(right, half, colors)
    return figure


def halved(curve: Mapping[int, float]) -> float:
    """The error with half of the experts, or the nearest available count (of two, the lower)."""
    counts = sorted(curve)
    return curve[min(counts, key=lambda c: abs(c - counts[-1] / 2))]


def _ranking(ax, half: dict[int, float], colors: list[str]) -> None:
    places, values = np.arange(len(half)), 100 * np.array(list(half.values()))
    ax.hlines(places, 0, values, color=colors, linewidth=1.2)
    ax.scatter(values, places, color=colors, s=36, zorder=3)
    size = 9 if len(half) <= 24 else 7
    ax.set_yticks(places, [f'layer {i}' for i in half], fontsize=size)
    ax.set_ylim(len(half) - 0.5, -0.5)
    ax.set_xlim(left=0)
    ax.set_title('with half of the experts')
    ax.set_xlabel('relative error, %')
    style.quiet_grid(ax, 'x')


def _finding(half: dict[int, float]) -> str:
    order = sorted(half, key=lambda i: (half[i], i))
    if len(order) == 1:
        return f'What layer {order[0]} loses as its experts go'
    return (f'Layer {order[0]} suffers least when half of its experts go, layer {order[-1]} most')
