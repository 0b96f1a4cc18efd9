"""The picture of a recovery study: the share of the lost nats that each recipe wins back."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from moe_jax.pictures import style
from moe_jax.study.report.recovery.standings import Finding, Ranking
from moe_jax.study.report.recovery.values import Records
from moe_jax.study.report.recovery.words import headline

ROW = 0.3  # inches
COLUMNS = 2


def draw(records: Records, found: Finding) -> tuple[Figure, str] | None:
    """One panel for each way of shrinking, one row for each recipe, with its interval."""
    rankings = [r for r in found.rankings if any(s.share is not None for s in r.recipes)]
    if not rankings:
        return None
    order = _order(rankings)
    columns = min(COLUMNS, len(rankings))
    rows = -(-len(rankings) // columns)
    figure, axes = style.canvas(
        1.5 + rows * (0.8 + ROW * max(len(order), 4)),
        style.wrapped(headline(found)),
        'Share of the nats lost by shrinking that each recipe wins back at equal tokens',
        rows, columns, sharey=True,
    )
    for ax, ranking in zip(axes.flat, rankings, strict=False):
        _panel(ax, ranking, order, records.study.ceiling)
    for ax in axes.flat[len(rankings):]:
        ax.set_axis_off()
    axes[0, 0].set_yticks(range(len(order)), [style.shorten(name) for name in order])
    axes[0, 0].set_ylim(len(order) - 0.4, -0.6)
    for ax in axes[:, 0]:
        ax.tick_params(axis='y', labelcolor=style.INK)
    return figure, (
        'Share of the lost nats won back, mean over tasks and seeds, with 95% intervals of the '
        'paired bootstrap; hollow marks are within noise of no recovery. 0% is the model just '
        'shrunk, 100% the unshrunk model as it was, and the dashed line the unshrunk model with '
        f'the same {records.study.ceiling}.')


def _order(rankings: list[Ranking]) -> list[str]:
    """Recipes by their mean share, the most first."""
    shares: dict[str, list[float]] = {}
    for ranking in rankings:
        for s in ranking.recipes:
            if s.share is not None:
                shares.setdefault(s.model.recipe, []).append(s.share.value)
    return sorted(shares, key=lambda name: (-float(np.mean(shares[name])), name))


def _panel(ax: Axes, ranking: Ranking, order: list[str], ceiling: str) -> None:
    colour = style.HUES[0]
    for s in ranking.recipes:
        if s.share is None:
            continue
        y = order.index(s.model.recipe)
        face = 'white' if s.share.status == 'noise' else colour
        ax.hlines(y, s.share.low, s.share.high, color=colour, linewidth=1.6, zorder=4)
        ax.scatter(s.share.value, y, s=44, facecolor=face, edgecolor=colour, linewidth=1.6,
                   zorder=5)
    marks = [(0.0, 'just shrunk', '-', 'center', 3), (1.0, 'unshrunk', '-', 'center', 3)]
    if ranking.ceiling is not None and ranking.ceiling.share is not None:
        name = style.shorten(f'unshrunk, {ceiling}')
        marks.append((ranking.ceiling.share.value, name, '--', 'right', 15))
    for x, text, line, align, above in marks:
        ax.axvline(x, color=style.INK, linewidth=1.1, linestyle=line, zorder=2)
        ax.annotate(text, (x, 1), xycoords=('data', 'axes fraction'), xytext=(0, above),
                    textcoords='offset points', ha=align, va='bottom', fontsize=8.5,
                    color=style.INK)
    ax.set_title(ranking.shrink, pad=32)
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_xlabel('lost nats won back')
    ax.grid(axis='x', color=style.LINE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(length=0)
    ax.margins(x=0.08)
