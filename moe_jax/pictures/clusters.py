"""A map of a layer's experts and of what a plan does with them; similar experts are close."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from moe_jax.calibration.stats import Stats
from moe_jax.model.fingerprint import same_model
from moe_jax.pictures import style
from moe_jax.pictures.seen import Layers, chosen, sums
from moe_jax.pictures.similarity import alike
from moe_jax.pictures.spots import DROPPED, spots


@style.look()
def clusters(
    plan: Any, stats: Stats, *, group: str | None = None, layers: Layers = None
) -> Figure:
    """One map per layer of a `prune.Plan`: color and spokes join merged experts; gray is dropped.

    Area: tokens that chose the expert first. Places: `places`. Titles: the sizes of the clusters,
    or experts left and before.
    group: data group of the statistics (default: the plan's own). layers: ids, or how many.
    """
    drawn = chosen('clusters', tuple(plan.layers), layers)
    _check_same(plan, stats)
    group = plan.options.get('group') if group is None else group
    seen = sums('clusters', stats, drawn, group, ('count_top1', 'logit_gram'))
    columns = next(c for c in (2, 3, 4, 6) if len(drawn) <= c * c or c == 6)
    before, after = (sum(getattr(plan.layers[i], name) for i in plan.layers)
                     for name in ('before', 'after'))
    joined = any((layer.mix != 0).sum(axis=1).max() > 1 for layer in plan.layers.values())
    figure, axes = style.panels(
        f'{style.shorten(plan.method)} leaves {after} of {before} experts',
        'Alike experts lie close; area: tokens routed to them first; ' + (
            'spokes join what becomes one expert' if joined else 'gray: dropped'),
        len(drawn), columns, min(3.2, 8.7 / columns),
    )
    for ax, i in zip(axes, drawn, strict=True):
        layer, count = plan.layers[i], seen[i]['count_top1']
        if layer.before != len(count):
            raise ValueError(f'clusters: layer {i} of the plan has {layer.before} experts, the '
                             f'statistics have {len(count)}; observe the model of the plan')
        points, labels = places(layer, seen[i]), members(layer)
        spots(ax, points, labels, count, scale=5 / columns**1.5,
              named=layer.before * columns <= 64)
        ax.set_title(_sizes(i, labels))
    return figure


def members(layer: Any) -> np.ndarray:
    """The new expert [E] of each old expert; DROPPED for an expert that is dropped."""
    if 'labels' in layer.notes and len(layer.notes['labels']) == layer.before:
        labels = np.asarray(layer.notes['labels'])
        if len(np.unique(labels)) == layer.after:
            return labels
    return np.where((layer.mix != 0).any(axis=0), np.abs(layer.mix).argmax(axis=0), DROPPED)


def places(layer: Any, seen: dict[str, np.ndarray]) -> np.ndarray:
    """Points [E, 2]: principal axes of the method's embedding, or classical scaling.

    Classical scaling (Torgerson 1952) takes 2 - 2 cos as squared distance, which is principal axes
    of unit vectors with these cosines.
    """
    if 'embedding' in layer.notes:
        points = np.asarray(layer.notes['embedding'], np.float64)
        points = points - points.mean(axis=0)
        gram = points @ points.T
    else:
        center = np.eye(layer.before) - 1 / layer.before
        gram = center @ alike(seen, 'logits') @ center
    values, vectors = np.linalg.eigh(gram)
    coordinates = vectors[:, :-3:-1] * np.sqrt(np.maximum(values[:-3:-1], 0))
    return np.pad(coordinates, ((0, 0), (0, 2 - coordinates.shape[1])))


def _sizes(layer: int, labels: np.ndarray) -> str:
    kept = labels[labels != DROPPED]
    sizes = sorted(np.unique(kept, return_counts=True)[1].tolist(), reverse=True)
    if len(kept) < len(labels) or len(sizes) > 6:
        return f'layer {layer}: {len(sizes)} of {len(labels)}'
    return f'layer {layer}: clusters of {", ".join(map(str, sizes))}'


def _check_same(plan: Any, stats: Stats) -> None:
    named = plan.model and stats.fingerprint.startswith('model:')
    if named and not same_model(plan.model, stats.fingerprint):
        raise ValueError('clusters: the plan and the statistics are of different models; observe '
                         'the model that the plan was made for')
