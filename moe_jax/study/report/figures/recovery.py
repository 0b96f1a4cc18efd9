"""Quality at each stage of the recovery, by method."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from moe_jax.pictures import style
from moe_jax.study.report.expert_count import background, names
from moe_jax.study.report.expert_count.values import Model, Records
from moe_jax.study.report.expert_count.verdict import Verdict
from moe_jax.study.report.figures.scale import signed_root

COLUMNS = 3
PANELS = 6
REST = 'other methods'
GREY = {'color': '#b9bfc9', 'linewidth': 1.0, 'zorder': 2.5}


def _pairs(records: Records) -> list[tuple[int, int]]:
    """At most six Z->G, those with most methods first, then the largest Z; in table order."""
    methods = {
        (z, g): sum(
            bool(background.stage_gaps(records, Model(z, g, m))) for m in records.study.methods
        )
        for z, kept in records.study.keep.items()
        for g in kept
    }
    order = sorted((p for p in methods if methods[p]), key=lambda p: (-methods[p], -p[0], -p[1]))
    return sorted(order[:PANELS], key=lambda p: (p[0], -p[1]))


def draw(records: Records, verdict: Verdict) -> tuple[Figure, str] | None:
    """One panel per Z->G: log-likelihood, stage by stage, against from scratch."""
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
    looks = _looks(records, verdict)
    handles: dict[str, Line2D] = {}
    for ax, (z, g) in zip(axes.flat, pairs, strict=False):
        handles |= _panel(ax, records, z, g, stages, looks)
        ax.axhline(0, color=style.INK, linewidth=1)
        ax.set_title(f'{z} -> {g}')
        style.quiet_grid(ax)
    values = [v for ax in axes.flat for line in ax.lines for v in line.get_ydata()]
    _axis(axes, stages, min(-0.05, *values), max(0.05, *values))
    for ax in axes.flat[len(pairs) :]:
        ax.set_axis_off()
    if REST in handles:
        handles[REST] = handles.pop(REST)  # last in the legend
    figure.legend(
        list(handles.values()), list(handles), loc='outside lower left', ncols=6, columnspacing=1.6
    )
    return figure, _caption(REST in handles)


def _caption(grouped: bool) -> str:
    caption = (
        'Recovery after shrinking: zero is the finished from-scratch model of the same size. The '
        'vertical scale is '
        'a signed square root, so that both the damage and the last hundredths can be read.'
    )
    if grouped:
        caption += (
            ' Named are the method of the answer, the first two and the last after recovery and '
            'right after shrinking (as in "Methods side by side"), and random choice.'
        )
    return caption


def _looks(records: Records, verdict: Verdict) -> dict[str, dict[str, object]]:
    """The look of each method: one color each while there are enough, else for some methods alone.

    Of many, these are the headline method and, at the smallest size, the first two and the last of
    both orders, and random choice as the floor; the rest is grey and goes to the back.
    """
    methods = records.study.methods
    bright = list(methods)
    if len(methods) > len(style.HUES):
        bright = [m for m in _standing_out(verdict) if m in methods] or bright[: len(style.HUES)]
    looks: dict[str, dict[str, object]] = dict.fromkeys(methods, GREY)
    for n, method in enumerate(bright):
        looks[method] = {
            'color': style.HUES[n],
            'marker': style.MARKERS[n],
            'markersize': 5,
            'linewidth': 1.8,
            'zorder': 10 - n,
        }
    return looks


def _standing_out(verdict: Verdict) -> list[str]:
    methods = [verdict.method]
    if verdict.lineups:
        lineup = min(verdict.lineups, key=lambda x: (x.keep, -x.experts))
        for order in (lineup.by_final(), lineup.by_loss()):
            methods += [s.model.method for s in (*order[:2], *order[-1:])]
    return list(dict.fromkeys(m for m in [*methods, 'random'] if m))


def _panel(
    ax: Axes,
    records: Records,
    z: int,
    g: int,
    stages: tuple[str, ...],
    looks: dict[str, dict[str, Any]],
) -> dict[str, Line2D]:
    """Draws one line per method; returns them by the name they have in the legend."""
    handles = {}
    for method in records.study.methods:
        gaps = background.stage_gaps(records, Model(z, g, method))
        points = [(k, gaps[s]) for k, s in enumerate(stages) if s in gaps]
        if points:
            line = ax.plot(*zip(*points, strict=True), **looks[method])[0]
            handles[REST if looks[method] is GREY else names.method(method)] = line
    return handles


def _axis(axes: np.ndarray, stages: tuple[str, ...], lowest: float, highest: float) -> None:
    labels = [
        names.STAGES.get(s, s).replace(' ', '\n').replace('-tuned', '-\ntuned') for s in stages
    ]
    for ax in axes.flat:
        signed_root(ax, 'y', lowest, highest)
        ax.set_xticks(range(len(stages)), labels)
        ax.set_xlim(-0.25, len(stages) - 0.75)
