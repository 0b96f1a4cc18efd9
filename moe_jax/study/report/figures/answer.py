"""The answer: shrunk minus from scratch at equal size, against the pruning factor."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_jax.pictures import style
from moe_jax.study.report.contrast import Contrast
from moe_jax.study.report.expert_count import names
from moe_jax.study.report.expert_count.values import Records
from moe_jax.study.report.expert_count.verdict import Verdict
from moe_jax.study.report.expert_count.words import headline


def draw(records: Records, verdict: Verdict) -> tuple[Figure, str] | None:
    """One line per pretrained size with its 95% intervals; hollow marks are within noise."""
    if not verdict.contrasts:
        return None
    name = names.method(verdict.method or '')
    figure, axes = style.canvas(
        4.9,
        style.wrapped(headline(verdict)),
        f'{name} minus from scratch at equal size, nats, mean over tasks',
    )
    ax = axes[0, 0]
    sizes = sorted({c.model.experts for c in verdict.contrasts})
    ends: dict[float, list[tuple[float, float, str, str]]] = {}
    for n, (experts, colour) in enumerate(zip(sizes, style.ramp(len(sizes)), strict=True)):
        own = sorted(
            (c for c in verdict.contrasts if c.model.experts == experts), key=lambda c: c.factor
        )
        # Whiskers of equal factors are side by side.
        x = [c.factor * (1 + 0.02 * (n - (len(sizes) - 1) / 2)) for c in own]
        _line(ax, own, x, colour, 0.4 / (2 + len(sizes)))
        end = (x[-1], own[-1].estimate.value, f'from {experts}', colour)
        ends.setdefault(own[-1].factor, []).append(end)
    factors = sorted({c.factor for c in verdict.contrasts})
    style.log2_axis(ax, 'x', factors, 'pruning factor: experts pretrained / experts kept')
    style.quiet_grid(ax)
    room = (factors[-1] / factors[0]) ** 0.12 * 1.1  # for the labels, at any range of factors
    ax.set_xlim(factors[0] / room, factors[-1] * room)
    ax.set_ylabel('difference (nats), higher is better')
    ax.margins(y=0.12)
    _zero(ax)
    for at, labels in ends.items():
        # Lines of one point at the left edge have other lines to their right.
        crowded = at == factors[0] and len(factors) > 1
        style.label_ends(ax, labels, 'left' if crowded else 'right')
    caption = (
        f'{name} against pretraining the small size from scratch. Each line is one pretrained '
        'size; bands and '
        'whiskers are 95% intervals of the paired bootstrap; hollow points are within noise.'
    )
    return figure, caption


def _line(ax: Axes, own: list[Contrast], x: list[float], colour: str, alpha: float) -> None:
    y = [c.estimate.value for c in own]
    low, high = [c.estimate.low for c in own], [c.estimate.high for c in own]
    ax.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0)
    ax.vlines(x, low, high, color=colour, linewidth=1.4)
    ax.plot(x, y, color=colour)
    faces = ['white' if c.status == 'noise' else colour for c in own]
    ax.scatter(x, y, s=44, facecolor=faces, edgecolor=colour, linewidth=1.6, zorder=5)


def _zero(ax: Axes) -> None:
    ax.axhline(0, color=style.INK, linewidth=1.2)
    ax.annotate(
        'equal to\npretraining\nsmall',
        (1, 0),
        xycoords=('axes fraction', 'data'),
        xytext=(6, 0),
        textcoords='offset points',
        va='center',
        fontsize=9,
        color=style.INK,
    )
