"""Methods side by side: the nats each loses at once, and its place after recovery."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from moe_jax.pictures import style
from moe_jax.study.report.expert_count import names
from moe_jax.study.report.expert_count.lineup import Lineup, Standing
from moe_jax.study.report.expert_count.values import Records
from moe_jax.study.report.expert_count.verdict import Verdict
from moe_jax.study.report.figures.scale import signed_root

COLUMNS = 3
PANELS = 6
ROW = 0.235  # inches
AT_ONCE, RECOVERED = style.HUES[1], style.HUES[0]
FAINT = '#9aa3b2'


def _chosen(verdict: Verdict) -> list[Lineup]:
    """At most six, those with most methods first, then the smallest size; in table order."""
    chosen = sorted(verdict.lineups, key=lambda x: (-len(x.standings), x.keep, -x.experts))[:PANELS]
    return [x for x in verdict.lineups if x in chosen]


def _title(lineups: list[Lineup]) -> str:
    """The finding at the smallest size."""
    smallest = min(lineups, key=lambda x: (x.keep, -x.experts))
    first, last = smallest.by_loss(), smallest.by_final()
    if not first or not last:
        return 'What does each method lose, and what does training give back?'
    at_once, after = (names.method(x[0].model.method) for x in (first, last))
    where = f'At {smallest.experts}->{smallest.keep} {at_once} loses least at once'
    tied = sum(c.status == 'noise' for c in smallest.behind)
    if tied:
        return f'{where}, {after} and {tied} within noise of it are best after recovery'
    return f'{where}{" and" if at_once == after else f", {after}"} is best after recovery'


def draw(records: Records, verdict: Verdict) -> tuple[Figure, str] | None:
    """One panel per Z->G and one row per method: open dots at once, filled ones after recovery."""
    del records
    lineups = _chosen(verdict)
    if not lineups:
        return None
    order = list(dict.fromkeys(s.model.method for x in lineups for s in x.standings))
    longest = max(lineups, key=lambda x: len(x.standings))
    ranked = [s.model.method for s in longest.standings]
    order = [*ranked, *(m for m in order if m not in ranked)]
    columns = min(COLUMNS, len(lineups))
    rows = math.ceil(len(lineups) / columns)
    figure, axes = style.canvas(
        1.45 + rows * (0.65 + ROW * max(len(order), 4)),
        style.wrapped(_title(lineups)),
        'Nats, square-root scale; higher (right) is better. Open: against the unshrunk model. '
        'Filled: against from scratch.',
        rows,
        columns,
        sharey=True,
        sharex=True,
    )
    lowest, highest = _reach(lineups)
    for ax, lineup in zip(axes.flat, lineups, strict=False):
        _panel(ax, lineup, order)
        signed_root(ax, 'x', lowest, highest, 0.13)
        ax.axvline(0, color=style.INK, linewidth=1)
        ax.set_title(f'{lineup.experts} -> {lineup.keep}')
    axes[0, 0].set_yticks(range(len(order)), [style.shorten(names.method(m)) for m in order])
    for ax in axes[:, 0]:
        ax.tick_params(axis='y', labelcolor=style.INK)
    axes[0, 0].set_ylim(len(order) - 0.4, -0.6)
    for ax in axes.flat[len(lineups) :]:
        ax.set_axis_off()
    handles = _handles(lineups)
    figure.legend(handles=handles, loc='outside lower left', ncols=3, columnspacing=1.6)
    return figure, _caption(lineups)


def _reach(lineups: list[Lineup]) -> tuple[float, float]:
    """Lowest and highest value of any mark or whisker, with room on both sides of zero."""
    values = [0.0]
    for lineup in lineups:
        for s in lineup.standings:
            loss = lineup.loss(s)
            values += [-loss.value] if loss else []
            values += [s.final.estimate.low, s.final.estimate.high] if s.final else []
    return min(-0.05, *values), max(0.02, *values)


def _panel(ax: Axes, lineup: Lineup, order: list[str]) -> None:
    for s in lineup.standings:
        _row(ax, order.index(s.model.method), s, lineup)
    ax.grid(axis='x', color=style.LINE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(length=0)


def _row(ax: Axes, y: int, s: Standing, lineup: Lineup) -> None:
    loss = lineup.loss(s)
    if loss and s.final:
        ends = (-loss.value, s.final.estimate.value)
        ax.plot(ends, (y, y), color=style.LINE, linewidth=1.4, zorder=2)
    if loss:
        edge = AT_ONCE if s.loss_rank else FAINT
        ax.scatter(-loss.value, y, s=34, facecolor='white', edgecolor=edge, linewidth=1.6, zorder=4)
    if s.final:
        colour = RECOVERED if s.final_rank else FAINT
        ax.hlines(y, s.final.estimate.low, s.final.estimate.high, color=colour, linewidth=1.4)
        ax.scatter(s.final.estimate.value, y, s=30, color=colour, linewidth=0, zorder=5)


def _handles(lineups: list[Lineup]) -> list[Line2D]:
    dot = {'linestyle': '', 'marker': 'o', 'markersize': 6, 'markeredgewidth': 1.6}
    kind = lineups[0].kind
    handles = [
        Line2D([], [], color=AT_ONCE, markerfacecolor='white', label=f'right after shrinking, '
               f'{kind} tasks', **dot),
        Line2D([], [], color=RECOVERED, label='after recovery, all tasks, with its 95% interval',
               **dot | {'linestyle': '-', 'linewidth': 1.4}),
    ]
    if any(s.final and not s.final_rank for x in lineups for s in x.standings):
        handles.append(Line2D([], [], color=FAINT, label='on fewer or other tasks or seeds', **dot))
    return handles


def _caption(lineups: list[Lineup]) -> str:
    smallest = min(x.keep for x in lineups)
    return (
        'Methods side by side, sorted by where they stand after recovery at '
        f'{smallest} experts. Open dots: log-likelihood right after shrinking, before any '
        f'training, minus that of the unshrunk model, mean over the {lineups[0].kind} tasks; '
        'records allow no interval. Filled dots: log-likelihood after the full budget minus from '
        'scratch at equal size, mean over all tasks. The two have different zeros: compare open '
        'dots with open ones, filled ones with filled ones.'
    )
