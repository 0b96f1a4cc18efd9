"""Threshold factor against the number of pretrained experts."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_jax.pictures import style
from moe_jax.study.report.expert_count import names
from moe_jax.study.report.expert_count.threshold import Threshold
from moe_jax.study.report.expert_count.values import Records
from moe_jax.study.report.expert_count.verdict import Verdict


def _title(verdict: Verdict) -> str:
    ends = verdict.moves[-1] if verdict.moves else None
    if ends is None or ends.status == 'open':
        return 'How far can a model be shrunk before it stops paying?'
    said = {'falls': 'falls', 'rises': 'rises', 'noise': 'shows no measurable move'}[ends.status]
    return f'The break-even factor {said} from {ends.first} to {ends.last} pretrained experts'


def _draw_one(ax: Axes, t: Threshold, bottom: float, top: float) -> None:
    """A point with its interval; arrows where a value lies outside the factors tried."""
    colour = style.HUES[0]

    def inside(value: float) -> float:
        return min(max(value, bottom), top)

    ax.vlines(t.experts, bottom, top, color=style.LINE, linewidth=9, alpha=0.55, zorder=1)
    low, high = inside(t.low), inside(t.high)
    ax.vlines(t.experts, low, high, color=colour, linewidth=1.6)
    for value in (t.low, t.high):
        if value == 0 or math.isinf(value):
            ax.plot(
                t.experts,
                bottom if value == 0 else top,
                '^' if value else 'v',
                color=colour,
                markersize=7,
            )
    tried = f'{names.ratio(t.factors[0])} to {names.ratio(t.factors[-1])}'
    if len(t.factors) == 1:
        tried = names.ratio(t.factors[0])
    if t.low == 0 and math.isinf(t.high):
        text, at = f'not located\n(tried {tried})', math.sqrt(bottom * top)
    elif math.isinf(t.crossing):
        text, at = f'not reached\n(tried {tried})', top
    elif t.crossing == 0:
        text, at = f'below {names.ratio(t.factors[0])}\n(tried {tried})', bottom
    else:
        text, at = f'{names.ratio(t.crossing)}\n(tried {tried})', t.crossing
        ax.plot(t.experts, t.crossing, 'o', color=colour, markersize=8)
    ax.annotate(
        text, (t.experts, at), xytext=(12, 0), textcoords='offset points', va='center', fontsize=9
    )


def draw(records: Records, verdict: Verdict) -> tuple[Figure, str] | None:
    """Crossing factor with its 95% interval, by pretrained size."""
    if not verdict.thresholds:
        return None
    figure, axes = style.canvas(
        4.3,
        style.wrapped(_title(verdict)),
        'Pruning factor at which shrinking and pretraining small are equal, by pretrained size',
    )
    ax = axes[0, 0]
    factors = sorted({f for t in verdict.thresholds for f in t.factors})
    for t in verdict.thresholds:
        _draw_one(ax, t, t.factors[0] / 1.12, t.factors[-1] * 1.12)
    sizes = [t.experts for t in verdict.thresholds]
    style.log2_axis(ax, 'x', sizes, 'experts pretrained per layer')
    style.log2_axis(ax, 'y', factors, 'break-even pruning factor')
    style.quiet_grid(ax)
    ax.set_xlim(sizes[0] / 1.4, sizes[-1] * 1.7)
    ax.set_ylim(factors[0] / 1.35, factors[-1] * 1.35)
    caption = (
        'Break-even factor, interpolated in log2(factor), with its 95% bootstrap interval. Arrows '
        'say that the '
        'interval leaves the range of factors tried (grey); below the point shrinking wins, above '
        'it pretraining small.'
    )
    return figure, caption
