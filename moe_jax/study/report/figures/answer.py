"""The answer: shrunk minus from scratch at equal size, against the pruning factor."""

from matplotlib.figure import Figure

from moe_jax.study.report import names, style
from moe_jax.study.report.values import Records
from moe_jax.study.report.verdict import Verdict
from moe_jax.study.report.words import headline


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
    ends = []
    for n, (experts, colour) in enumerate(zip(sizes, style.ramp(len(sizes)), strict=True)):
        own = sorted(
            (c for c in verdict.contrasts if c.model.experts == experts), key=lambda c: c.factor
        )
        shift = 1 + 0.012 * (
            n - (len(sizes) - 1) / 2
        )  # whiskers of equal factors stand side by side
        x = [c.factor * shift for c in own]
        y = [c.estimate.value for c in own]
        low, high = [c.estimate.low for c in own], [c.estimate.high for c in own]
        ax.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
        ax.vlines(x, low, high, color=colour, linewidth=1.4)
        ax.plot(x, y, color=colour)
        for c, at in zip(own, x, strict=True):
            face = 'white' if c.status == 'noise' else colour
            ax.plot(
                at, c.estimate.value, 'o', color=colour, markerfacecolor=face, markeredgewidth=1.6
            )
        ends.append((x[-1], y[-1], f'from {experts}', colour))
    factors = sorted({c.factor for c in verdict.contrasts})
    style.log2_axis(ax, 'x', factors, 'pruning factor: experts pretrained / experts kept')
    style.quiet_grid(ax)
    ax.set_xlim(factors[0] / 1.12, factors[-1] * 1.22)
    ax.set_ylabel('difference (nats), higher is better')
    ax.axhline(0, color=style.INK, linewidth=1.2)
    ax.margins(y=0.12)
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
    style.label_ends(ax, ends)
    caption = (
        f'{name} against pretraining the small size from scratch. Each line is one pretrained '
        'size; bands and '
        'whiskers are 95% intervals of the paired bootstrap; hollow points are within noise.'
    )
    return figure, caption
