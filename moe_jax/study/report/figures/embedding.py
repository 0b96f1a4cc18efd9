"""Router clusters as the shrinking method sees them."""

import math

import numpy as np
from matplotlib.figure import Figure

from moe_jax.pictures import style
from moe_jax.pictures.spots import spots
from moe_jax.study.report.expert_count.values import Embedding, Records
from moe_jax.study.report.expert_count.verdict import Verdict

COLUMNS = 3


def _choose(records: Records) -> Embedding | None:
    """The largest model, at the largest count of clusters that eight colours tell apart."""
    drawable = [e for e in records.embeddings if e.layers]
    if not drawable:
        return None
    return min(drawable, key=lambda e: (-e.experts, e.keep > len(style.HUES), -e.keep, e.task,
                                        e.seed))


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
        spots(ax, clusters.points, clusters.labels, clusters.count)
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
