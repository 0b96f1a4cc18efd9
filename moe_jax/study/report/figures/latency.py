"""Forward latency against experts per layer."""

import numpy as np
from matplotlib.figure import Figure

from moe_jax.pictures import style
from moe_jax.study.report.expert_count import background
from moe_jax.study.report.expert_count.values import Records
from moe_jax.study.report.expert_count.verdict import Verdict


def _title(rounds: dict[int, tuple[float, ...]]) -> str:
    few, many = min(rounds), max(rounds)
    if few == many:
        return 'What does a forward pass cost?'
    low, high = np.median(rounds[few]), np.median(rounds[many])
    if max(rounds[few]) >= min(rounds[many]) and max(rounds[many]) >= min(rounds[few]):
        return f'{many} experts and {few} experts cost about the same per forward pass'
    return f'A forward pass with {many} experts takes {high / low:.1f} times as long as with {few}'


def draw(records: Records, verdict: Verdict) -> tuple[Figure, str] | None:
    """Median with the fastest and slowest round; the size in memory below each count."""
    del verdict
    rounds = background.latencies(records)
    if not rounds:
        return None
    tokens = sorted({latency.tokens for latency in records.latencies if latency.tokens})
    batch = f' of {tokens[0]:,} tokens' if len(tokens) == 1 else ''
    figure, axes = style.canvas(
        3.9,
        _title(rounds),
        f'Milliseconds per forward pass{batch}: median, fastest and slowest round',
    )
    ax = axes[0, 0]
    x = list(rounds)
    middle = [float(np.median(r)) for r in rounds.values()]
    ax.vlines(
        x,
        [min(r) for r in rounds.values()],
        [max(r) for r in rounds.values()],
        color=style.HUES[0],
        linewidth=1.6,
    )
    ax.plot(x, middle, 'o-', color=style.HUES[0])
    sizes = {n: b for latency in records.latencies for n, b in latency.parameter_bytes.items()}
    for at, ms in zip(x, middle, strict=True):
        ax.annotate(
            f'{ms:.1f}', (at, ms), xytext=(9, -3), textcoords='offset points', va='top', fontsize=9
        )
    style.log2_axis(
        ax, 'x', x, 'experts per layer' + (' (size of the parameters)' if sizes else '')
    )
    if sizes:
        ax.set_xticks(x, [f'{n}\n{sizes[n] / 2**20:.1f} MiB' if n in sizes else str(n) for n in x])
    style.quiet_grid(ax)
    ax.set_xlim(x[0] / 1.25, x[-1] * 1.35)
    ax.set_ylim(bottom=0)
    ax.set_ylabel('milliseconds')
    return figure, 'Forward latency by expert count on the machine of this study.'
