"""Similarity matrices of a layer's experts, ordered so that similar ones form blocks."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from moe_jax.base.checks import choice
from moe_jax.calibration.stats import Stats
from moe_jax.pictures import style
from moe_jax.pictures.seen import Layers, chosen, sums

Kind = Literal['logits', 'outputs', 'together']


class About(NamedTuple):
    """The statistics a kind reads, its title, and its scale in words."""

    needs: tuple[str, ...]
    title: str
    scale: str


KINDS = {
    'logits': About(('logit_gram',), 'Which experts the router treats alike',
                    'cosine of router logits'),
    'outputs': About(('output_sum',), 'Which experts give alike outputs',
                     'cosine of mean outputs'),
    'together': About(('together',), 'Which experts work on the same tokens',
                      'tokens in common / geometric mean of tokens'),
}


@style.look()
def similarity(
    stats: Stats, kind: Kind = 'logits', *, group: str | None = None, layers: Layers = None
) -> Figure:
    """One matrix [E, E] per layer; experts are ordered by average-linkage clustering.

    kind: `alike`. group: one group of the statistics (default all merged). layers: ids, or how many
    (default all). Colors span the values off the diagonal.
    """
    choice('similarity: kind', kind, KINDS)
    about, drawn = KINDS[kind], chosen('similarity', stats.layers, layers)
    seen = sums('similarity', stats, drawn, group, about.needs)
    by_layer = {i: alike(layer, kind) for i, layer in seen.items()}
    if kind == 'together' and not any(_between(s).any() for s in by_layer.values()):
        raise ValueError("similarity: every token chose one expert, so no two work together; use "
                         "kind='logits' or kind='outputs'")
    low, high = _limits(by_layer.values())
    columns = next(c for c in (2, 3, 4, 6) if len(by_layer) <= c * c or c == 6)
    side = 7.6 / columns
    figure, axes = style.panels(
        about.title, f'{about.scale[0].upper()}{about.scale[1:]}, of '
        f'{"all tokens" if group is None else style.shorten(group)}; alike experts side by side',
        len(by_layer), columns, side + 0.35,
    )
    for ax, (i, matrix) in zip(axes, by_layer.items(), strict=True):
        order = ordered(matrix)
        image = ax.imshow(matrix[np.ix_(order, order)], cmap='RdBu_r' if low < 0 else 'YlGnBu',
                          vmin=low, vmax=high, interpolation='nearest')
        for axis in (ax.xaxis, ax.yaxis):
            style.ids(axis, order, side / len(order))
        style.frame(ax)
        ax.set_title(f'layer {i}')
    style.color_bar(figure, image, axes, about.scale)
    return figure


def alike(layer: Mapping[str, np.ndarray], kind: Kind) -> np.ndarray:
    """Similarity [E, E] of a layer's experts, 1 on the diagonal, 0 for an expert without tokens.

    'logits': C_ij / √(C_ii C_jj) of C = sum_t z z^T; 'outputs': cosine of the mean outputs, where
    evaluated; 'together': n_ij / √(n_i n_j), n the tokens that chose both, or one.
    """
    if kind == 'outputs':
        total = np.asarray(layer['output_sum'], np.float64)
        gram = total @ total.T
    else:
        gram = np.asarray(layer[KINDS[kind].needs[0]], np.float64)
    norm = np.sqrt(np.diag(gram))
    scale = np.outer(norm, norm)
    cosine = np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0)
    np.fill_diagonal(cosine, 1)
    return np.clip(cosine, -1, 1)


def ordered(matrix: np.ndarray) -> np.ndarray:
    """Experts in the order of the leaves of an average-linkage tree: similar ones are adjacent."""
    if len(matrix) < 3:
        return np.arange(len(matrix))
    distance = squareform(1 - (matrix + matrix.T) / 2, checks=False)
    return leaves_list(linkage(distance, 'average', optimal_ordering=True))


def _between(matrix: np.ndarray) -> np.ndarray:
    """The values off the diagonal."""
    return matrix[~np.eye(len(matrix), dtype=bool)]


def _limits(matrices) -> tuple[float, float]:
    """Color limits of the values off the diagonal; symmetric about 0 if some are negative."""
    values = np.concatenate([_between(m) for m in matrices])
    low, high = float(values.min(initial=0)), float(values.max(initial=0)) or 1.0
    return (0.0, high) if low >= 0 else (-max(high, -low), max(high, -low))
