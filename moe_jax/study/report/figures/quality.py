"""Quality against experts kept, one panel per task."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from moe_jax.pictures import style
from moe_jax.study.report.expert_count import names
from moe_jax.study.report.expert_count.values import Model, Records, is_choice, scratch
from moe_jax.study.report.expert_count.verdict import Verdict
from moe_jax.study.report.paired import mean

COLUMNS = 3


def _point(verdict: Verdict, task: str, model: Model) -> float | None:
    estimates = [e for (_, t, m), e in verdict.quality.items() if t == task and m == model]
    return mean(estimates).value if estimates else None


def _line(verdict: Verdict, task: str, wanted: list[Model]) -> tuple[list[int], list[float]]:
    points = [(m.keep, _point(verdict, task, m)) for m in sorted(wanted, key=lambda m: m.keep)]
    points = [(keep, value) for keep, value in points if value is not None]
    return [k for k, _ in points], [v for _, v in points]


def draw(records: Records, verdict: Verdict) -> tuple[Figure, str] | None:
    """From-scratch curve and one line per pretrained size, down to each size kept."""
    tasks = [t for t in records.study.tasks if any(key[1] == t for key in verdict.quality)]
    if not tasks:
        return None
    name = names.method(verdict.method or 'shrunk')
    rows = math.ceil(len(tasks) / COLUMNS)
    columns = 2 if len(tasks) == 4 else min(COLUMNS, len(tasks))
    figure, axes = style.canvas(
        1.15 + 2.55 * rows,
        'Does a model that started larger end up better at the same size?',
        'Log-likelihood after the full budget, nats per example (choice) or per token (text); '
        'higher is better',
        rows,
        columns,
        sharex=True,
    )
    sizes = [z for z in records.study.keep if records.study.keep[z]]
    colours = dict(zip(sizes, style.ramp(len(sizes)), strict=True))
    handles: dict[str, Line2D] = {}
    for ax, task in zip(axes.flat, tasks, strict=False):
        handles |= _panel(ax, records, verdict, task, colours)
        unit = 'per example' if is_choice(records, task) else 'per token'
        ax.set_title(f'{style.shorten(task, 20)}  ({unit})')
        style.log2_axis(ax, 'x', records.study.experts, '')
        style.quiet_grid(ax)
        ax.margins(y=0.12)
    for ax in axes.flat[len(tasks) :]:
        ax.set_axis_off()
    for column in range(columns):
        last = max(n for n in range(len(tasks)) if n % columns == column)
        axes.flat[last].set_xlabel('experts per layer')
        axes.flat[last].tick_params(labelbottom=True)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc='outside lower left',
        ncols=min(len(handles), 5),
        handlelength=2.2,
        columnspacing=1.6,
    )
    caption = (
        'Quality of models of each size, by task. Solid lines start at the full pretrained model '
        '(right end) and '
        f'follow it as {name} shrinks it; the dashed line is pretraining each size from scratch. '
        'Above the dashed '
        'line, shrinking pays.'
    )
    return figure, caption


def _panel(
    ax: Axes, records: Records, verdict: Verdict, task: str, colours: dict[int, str]
) -> dict[str, Line2D]:
    """Draws the lines of one task; returns them by the name they have in the legend."""
    x, y = _line(verdict, task, [scratch(z) for z in records.study.experts])
    dashes = {'linestyle': (0, (4, 2)), 'linewidth': 1.6, 'markerfacecolor': 'white', 'zorder': 3}
    handles = {
        'from scratch': ax.plot(x, y, color=style.SCRATCH, marker='o', markersize=4, **dashes)[0]
    }
    for z, colour in colours.items():
        shrunk = [Model(z, g, verdict.method or '') for g in records.study.keep[z]]
        x, y = _line(verdict, task, [*shrunk, scratch(z)])
        if x and x[0] != z:
            name = f'{names.method(verdict.method or "")} from {z}'
            handles[name] = ax.plot(x, y, color=colour, marker='o', markersize=4)[0]
    return handles
