"""Heat maps of the experts that each data group uses."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_jax.calibration.stats import Stats
from moe_jax.pictures import style
from moe_jax.pictures.seen import Layers, chosen, sums

COLORS = 'YlGnBu'


@style.look()
def usage(
    stats: Stats, groups: str | Sequence[str] | None = None, *, layers: Layers = None
) -> Figure:
    """Share of each group's tokens that choose an expert, in percent.

    groups: names to compare (default all). Of several, one panel [groups, E] per layer, experts
      ordered by the group that uses them most; of one, a single panel [layers, E] in order.
    layers: ids, or how many (default all).
    """
    names = [groups] if isinstance(groups, str) else list(groups or sorted(stats.groups))
    drawn = chosen('usage', stats.layers, layers)
    seen = [sums('usage', stats, drawn, name, ('count',)) for name in names]
    share = {i: 100 * np.stack([s[i]['count'] / s[i]['tokens'] for s in seen]) for i in drawn}
    if len(names) == 1:
        return _layers_by_experts(names[0], {i: rows[0] for i, rows in share.items()})
    return _groups_by_experts(names, share)


def _groups_by_experts(names: list[str], share: dict[int, np.ndarray]) -> Figure:
    experts = max(s.shape[1] for s in share.values())
    # A cell of 0.019 inches is 4 pixels of a saved picture.
    columns = max(1, min(3, math.ceil(len(share) / 6), int(7.5 / (0.019 * experts))))
    cell = 7.5 / columns / experts
    figure, axes = style.panels(
        'Which experts each group uses',
        f'{_explained(share)}; experts ordered by the group that uses them most',
        len(share), columns, (0.6 if cell > 0.12 else 0.4) + 0.22 * len(names), sharey=True,
    )
    top = max(float(s.max()) for s in share.values())
    for ax, (i, rows) in zip(axes, share.items(), strict=True):
        order = np.lexsort((-rows.max(axis=0), rows.argmax(axis=0)))
        image = _heat(ax, rows[:, order], top, grid=cell > 0.06)
        style.ids(ax.xaxis, order, cell)
        ax.set_title(f'layer {i}')
        ax.set_yticks(range(len(names)), [style.shorten(n, 16) for n in names])
    style.color_bar(figure, image, axes, "% of the group's tokens")
    return figure


def _layers_by_experts(name: str, share: dict[int, np.ndarray]) -> Figure:
    experts = max(map(len, share.values()))
    table = np.full((len(share), experts), np.nan)
    for row, values in zip(table, share.values(), strict=True):
        row[: len(values)] = values
    whose = '' if name == 'all' else f' of {style.shorten(name)}'
    figure, (ax,) = style.panels(
        f'Which experts the tokens{whose} choose', _explained(share), 1, 1,
        0.7 + max(0.24, min(0.5, 2.4 / len(share))) * len(share),
    )
    image = _heat(ax, table, float(np.nanmax(table)), grid=experts <= 64)
    style.ids(ax.xaxis, np.arange(experts), 7.5 / experts)
    ax.set_xlabel('expert')
    ax.set_yticks(range(len(share)), [f'layer {i}' for i in share])
    style.color_bar(figure, image, [ax], '% of tokens')
    return figure


def _explained(share: dict[int, np.ndarray]) -> str:
    even = {round(float(s.sum() / s.size), 1) for s in share.values()}
    spread = f'; an even spread: {even.pop():g}% everywhere' if len(even) == 1 else ''
    return f'Share of tokens that choose an expert{spread}'


def _heat(ax: Axes, table: np.ndarray, top: float, *, grid: bool):
    image = ax.imshow(table, aspect='auto', cmap=COLORS, vmin=0, vmax=top, interpolation='nearest')
    style.frame(ax)
    if grid:
        style.cells(ax, *table.shape)
    return image
