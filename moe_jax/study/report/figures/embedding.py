"""Router clusters as the shrinking method sees them."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_jax.study.report import style
from moe_jax.study.report.values import Clusters, Embedding, Records
from moe_jax.study.report.verdict import Verdict

COLUMNS = 3


def _choose(records: Records) -> Embedding | None:
    """The largest model, at the largest count of clusters that eight colours tell apart."""
    found = [e for e in records.embeddings if e.layers]
    if not found:
        return None
    return min(found, key=lambda e: (-e.experts, e.keep > len(style.HUES), -e.keep, e.task, e.seed))


def _panel(ax: Axes, clusters: Clusters) -> None:
    size = 25 + 260 * clusters.count / max(float(clusters.count.max()), 1.0)
    for n, label in enumerate(np.unique(clusters.labels)):
        members = clusters.labels == label
        points = clusters.points[members]
        colour = style.HUES[n % len(style.HUES)]
        centre = points.mean(axis=0)
        for point in points:
            ax.plot(
                *zip(centre, point, strict=True), color=colour, linewidth=0.8, alpha=0.5, zorder=1
            )
        ax.scatter(
            *points.T,
            s=size[members],
            color=colour,
            alpha=0.85,
            edgecolor='white',
            linewidth=0.8,
            marker=style.MARKERS[n // len(style.HUES) % len(style.MARKERS)],
            zorder=2,
        )
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color(style.LINE)
    ax.margins(0.14)


def draw(records: Records, verdict: Verdict) -> tuple[Figure, str] | None:
    """One panel per layer; colour and spokes join a cluster, area is tokens routed."""
    del verdict
    chosen = _choose(records)
    if chosen is None:
        return None
    columns = min(COLUMNS, len(chosen.layers))
    rows = math.ceil(len(chosen.layers) / columns)
    figure, axes = style.canvas(
        1.0 + rows * 2.9,
        'Which experts are routed alike?',
        f'Spectral embedding of {chosen.experts} routers clustered into {chosen.keep}, on '
        f'{style.shorten(chosen.task)}',
        rows,
        columns,
    )
    for ax, (layer, clusters) in zip(axes.flat, chosen.layers.items(), strict=False):
        _panel(ax, clusters)
        sizes = sorted(np.unique(clusters.labels, return_counts=True)[1].tolist(), reverse=True)
        ax.set_title(f'layer {layer}: clusters of {", ".join(map(str, sizes))}')
    for ax in axes.flat[len(chosen.layers) :]:
        ax.set_axis_off()
    caption = (
        f'Experts of each layer placed by how alike their router logits are on {chosen.task} '
        '(two spectral '
        f'coordinates). Colour and spokes: the {chosen.keep} clusters that are merged into one '
        'expert each; area: '
        'tokens routed.'
    )
    return figure, caption
