"""Quality against experts kept, by method, and the recommended stop."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from moe_jax.base.checks import choice
from moe_jax.pictures import style

AXIS = {'lost': 'nats lost per token', 'kl': 'KL from the original, nats per token',
        'rejected': "share of tokens where the original's answer is rejected"}


@style.look()
def safe_sparsity(
    points: Sequence[Mapping[str, Any]],
    *,
    metric: str = 'lost',
    tolerance: float | None = None,
    stop: Mapping[str, Any] | None = None,
    title: str = '',
) -> Figure:
    """One line per method with its 95% band, the tolerance, and a ring around the recommended stop.

    points, metric, tolerance, stop: of a `prune.Safety`, which draws itself with `figure()`.
    """
    choice('metric', metric, AXIS)
    names = list(dict.fromkeys(point['method'] for point in points))
    if not names:
        raise ValueError('safe_sparsity: no point to draw')
    figure, axes = style.canvas(
        4.6, style.wrapped(title or f'{AXIS[metric][0].upper()}{AXIS[metric][1:]} by experts kept'),
        'Each point is a shrunk model without any training; bands are 95% bootstrap intervals over '
        'rows of text')
    ax = axes[0, 0]
    for k, name in enumerate(names):
        mine = sorted((p for p in points if p['method'] == name), key=lambda p: p['kept'])
        kept = [p['kept'] for p in mine]
        mean, low, high = (np.array([p[metric][end] for p in mine], float)
                           for end in ('mean', 'low', 'high'))
        color = style.HUES[k % len(style.HUES)]
        ax.plot(kept, mean, color=color, marker=style.MARKERS[k % len(style.MARKERS)], label=name,
                linestyle='-' if k < len(style.HUES) else '--', zorder=4)
        ax.fill_between(kept, low, high, color=color, alpha=0.15, linewidth=0, zorder=2)
    if tolerance is not None:
        ax.axhline(tolerance, color=style.SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
        ax.annotate(f'tolerance {tolerance:g}', (0, tolerance), xycoords=('axes fraction', 'data'),
                    xytext=(4, 4), textcoords='offset points', ha='left', color=style.SOFT,
                    fontsize=9)
    if stop is not None:
        ax.plot([stop['kept']], [stop[metric]['mean']], 'o', markersize=15, markeredgewidth=2,
                markerfacecolor='none', markeredgecolor=style.INK, zorder=6)
    every = sorted({p['kept'] for p in points})
    if len(every) <= 16:
        style.log2_axis(ax, 'x', every, 'experts kept per MoE layer')
    else:
        ax.set_xlabel('experts kept per MoE layer')
    ax.set_ylabel(AXIS[metric])
    ax.legend(ncols=1 if len(names) <= 6 else 2)
    style.quiet_grid(ax)
    return figure
