"""Quality at each stage of the recovery, by method."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from moe_jax.pictures import style
from moe_jax.study.report import background, names
from moe_jax.study.report.values import Model, Records
from moe_jax.study.report.verdict import Verdict

COLUMNS = 3
PANELS = 6


def _pairs(records: Records) -> list[tuple[int, int]]:
    """At most six Z->G, those with most methods first, then the largest Z; in table order."""
    methods = {
        (z, g): sum(
            bool(background.stage_gaps(records, Model(z, g, m))) for m in records.study.methods
        )
        for z, kept in records.study.keep.items()
        for g in kept
    }
    found = sorted((p for p in methods if methods[p]), key=lambda p: (-methods[p], -p[0], -p[1]))
    return sorted(found[:PANELS], key=lambda p: (p[0], -p[1]))


def draw(records: Records, verdict: Verdict) -> tuple[Figure, str] | None:
    """One panel per Z->G: log-likelihood, stage by stage, against from scratch."""
    del verdict
    pairs = _pairs(records)
    stages = background.stage_names(records)
    if not pairs:
        return None
    columns = min(COLUMNS, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    figure, axes = style.canvas(
        1.5 + 2.5 * rows,
        'How much of the damage of shrinking does training repair?',
        'Log-likelihood minus the finished from-scratch model of equal size, nats, mean over '
        'tasks; square-root scale',
        rows,
        columns,
        sharey=True,
        sharex=True,
    )
    handles: dict[str, Line2D] = {}
    for ax, (z, g) in zip(axes.flat, pairs, strict=False):
        handles |= _panel(ax, records, z, g, stages)
        ax.axhline(0, color=style.INK, linewidth=1)
        ax.set_title(f'{z} -> {g}')
        style.quiet_grid(ax)
    values = [v for ax in axes.flat for line in ax.lines for v in line.get_ydata()]
    _axis(axes, stages, min(-0.05, *values), max(0.05, *values))
    for ax in axes.flat[len(pairs) :]:
        ax.set_axis_off()
    figure.legend(
        list(handles.values()), list(handles), loc='outside lower left', ncols=6, columnspacing=1.6
    )
    caption = (
        'Recovery after shrinking: zero is the finished from-scratch model of the same size. The '
        'vertical scale is '
        'a signed square root, so that both the damage and the last hundredths can be read.'
    )
    return figure, caption


def _panel(
    ax: Axes, records: Records, z: int, g: int, stages: tuple[str, ...]
) -> dict[str, Line2D]:
    """Draws one line per method; returns them by the name they have in the legend."""
    handles = {}
    for n, method in enumerate(records.study.methods):
        gaps = background.stage_gaps(records, Model(z, g, method))
        found = [(k, gaps[s]) for k, s in enumerate(stages) if s in gaps]
        if found:
            handles[names.method(method)] = ax.plot(
                *zip(*found, strict=True),
                color=style.HUES[n % len(style.HUES)],
                marker=style.MARKERS[n % len(style.MARKERS)],
                markersize=5,
                linewidth=1.8,
                zorder=10 - n,
            )[0]
    return handles


def _axis(axes: np.ndarray, stages: tuple[str, ...], lowest: float, highest: float) -> None:
    ticks = _ticks(lowest, highest)
    labels = [
        names.STAGES.get(s, s).replace(' ', '\n').replace('-tuned', '-\ntuned') for s in stages
    ]
    for ax in axes.flat:
        ax.set_yscale(
            'function',
            functions=(
                lambda v: np.sign(v) * np.sqrt(np.abs(v)),
                lambda v: np.sign(v) * np.square(v),
            ),
        )
        ax.yaxis.set_major_locator(FixedLocator(ticks))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f'{v:+g}' if v else '0'))
        ax.set_ylim(lowest * 1.15, highest * 1.3)
        ax.set_xticks(range(len(stages)), labels)
        ax.set_xlim(-0.25, len(stages) - 0.75)


def _ticks(lowest: float, highest: float) -> list[float]:
    """Round values on both sides of zero, at least a tenth of the square-root scale apart."""
    gap = (math.sqrt(highest) + math.sqrt(-lowest)) / 10
    ticks = [0.0]
    for sign, end in ((1, highest), (-1, -lowest)):
        last = math.inf
        for value in (50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01):
            root = math.sqrt(value)
            if value <= end * 1.05 and last - root >= gap and root >= gap:
                ticks.append(sign * value)
                last = root
    return ticks
