"""How time grows by experts, tokens, experts per token and layers, from the records of `growth`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.growth_lines import FLAT, LINES, OVER
from moe_jax.pictures import style

LABELS = {'layer': 'one layer', 'torch layer': 'one layer, torch grouped_mm',
        'model': 'scoring with a model'}
ROW = re.compile(rf'({"|".join(LINES)}), ([a-z ]+) (\d+)(, {OVER})?')
Curves = dict[str, dict[str, dict[int, float]]]  # axis, line, size -> time over proportional growth


def draw(records: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write growth.png into a folder; what was written. ValueError where there is nothing to draw.
    """
    figure = growth(curves(records))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'growth.png'
    path.write_bytes(style.png(figure))
    return [path]


def curves(records: Sequence[Mapping[str, Any]]) -> Curves:
    """The latest number of each size, by axis and line."""
    curves: Curves = {}
    for one in records:
        if one['benchmark'] == 'growth' and (match := ROW.fullmatch(one['what'])):
            line, axis, size, growth = match.groups()
            values = curves.setdefault(axis, {}).setdefault(line, {})
            values[int(size)] = one['value'] if growth else values.get(int(size), 1.0)
    return curves


@style.look()
def growth(curves: Curves) -> Figure:
    """A panel for each axis: the time of each size over what proportional growth would give."""
    if not curves:
        raise ValueError("no records of 'growth': write some with "
                         'python -m benchmarks growth --out FILE.jsonl')
    figure, axes = style.panels(
        _finding(curves), 'Time over that of the least size, over the work of a token’s experts; '
        '1: in proportion', len(curves), 2, 2.5)
    top = 1.15 * max(value for lines in curves.values() for line in lines.values()
                     for value in line.values())
    for ax, (axis, lines) in zip(axes, curves.items(), strict=True):
        ax.axhline(1, color=style.SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
        for name, color, marker in zip(LINES, style.HUES, style.MARKERS, strict=False):
            if name in lines:
                sizes = sorted(lines[name])
                ax.plot(sizes, [lines[name][n] for n in sizes], color=color, marker=marker,
                        label=LABELS[name], zorder=3)
        style.log2_axis(ax, 'x', sorted({n for line in lines.values() for n in line}), axis)
        ax.set_ylim(0, top)
        style.quiet_grid(ax)
    axes[0].legend(loc='lower right')
    return figure


def _finding(curves: Curves) -> str:
    """What the picture shows, in a sentence."""
    if FLAT in curves and 'layer' in curves[FLAT]:
        line = curves[FLAT]['layer']
        least, most = min(line), max(line)
        return (f'A layer of {most} experts takes {line[most]:.2g} times as long as one of {least} '
                'with the same work')
    return 'How time grows'
