"""Clusters of experts on a map; color and spokes join the experts of a cluster."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from moe_jax.pictures import style

DROPPED = -1


def spots(
    ax: Axes, points: np.ndarray, labels: np.ndarray, count: np.ndarray, *, scale: float = 1.0,
    named: bool = False,
) -> None:
    """Points [E, 2] with spokes to the middle of their cluster; labels [E], or DROPPED; area by
    count [E]; named: write ids beside them."""
    size = scale * (25 + 260 * count / max(float(count.max()), 1.0))
    gone = labels == DROPPED
    if len(np.unique(labels[~gone])) == (~gone).sum():
        # If no experts are joined, a color for each would have no meaning.
        _scatter(ax, points[~gone], size[~gone], style.HUES[0], 'o')
    else:
        for n, label in enumerate(np.unique(labels[~gone])):
            inside, color = labels == label, style.HUES[n % len(style.HUES)]
            _spokes(ax, points[inside], color)
            marker = style.MARKERS[n // len(style.HUES) % len(style.MARKERS)]
            _scatter(ax, points[inside], size[inside], color, marker)
    _scatter(ax, points[gone], size[gone], style.LINE, 'o')
    if named:
        _name(ax, points, size)
    ax.set_xticks([])
    ax.set_yticks([])
    style.frame(ax)
    ax.margins(0.14)


def _spokes(ax: Axes, points: np.ndarray, color: str) -> None:
    lines = [(points.mean(axis=0), point) for point in points]
    ax.add_collection(LineCollection(lines, colors=color, linewidths=0.8, alpha=0.5, zorder=1))


def _scatter(ax: Axes, points: np.ndarray, size: np.ndarray, color: str, marker: str) -> None:
    if len(points):
        ax.scatter(*points.T, s=size, color=color, alpha=0.85, edgecolor='white', linewidth=0.8,
                   marker=marker, zorder=2)


def _name(ax: Axes, points: np.ndarray, size: np.ndarray) -> None:
    for e, (point, area) in enumerate(zip(points, size, strict=True)):
        offset = 0.7 * (area / np.pi) ** 0.5 + 1  # clear of its own spot
        ax.annotate(str(e), point, xytext=(offset, offset), textcoords='offset points', fontsize=8,
                    color=style.INK, zorder=3)
