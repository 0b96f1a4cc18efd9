"""The common style of all figures: palette, type, axes, and labels that do not collide."""

import contextlib
import io
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import matplotlib
import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

INK = '#1f2430'
SOFT = '#667085'
LINE = '#d5d9e0'
SCRATCH = '#1f2430'
WIDTH = 9.0  # inches: 900 px at 1x, and saved at 2x
# Okabe and Ito's color-blind safe set, strongest first.
HUES = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#7f7f7f', '#4d3b8f')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '*')

RC = {
    'font.family': 'DejaVu Sans',
    'font.size': 10,
    'text.color': INK,
    'text.parse_math': False,  # a '$' in a record's text is a dollar sign
    'axes.edgecolor': SOFT,
    'axes.labelcolor': SOFT,
    'axes.linewidth': 0.8,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.titlesize': 10,
    'axes.titlelocation': 'left',
    'axes.titlecolor': INK,
    'axes.formatter.use_mathtext': False,
    'xtick.color': SOFT,
    'ytick.color': SOFT,
    'xtick.labelsize': 9,
    'ytick.labelsize': 9,
    'lines.linewidth': 2.0,
    'lines.markersize': 6,
    'lines.solid_capstyle': 'round',
    'figure.facecolor': 'white',
    'legend.frameon': False,
    'legend.fontsize': 9,
}


@contextlib.contextmanager
def look() -> Iterator[None]:
    """A context with this style instead of the user's matplotlibrc, whose settings then return."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, RC))
        yield


class Picture(Figure):
    """A figure that keeps its style when it is drawn later, and shows itself in a notebook."""

    def draw(self, renderer: RendererBase) -> None:
        with look():
            super().draw(renderer)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        width, height = self.get_size_inches()
        return png(self), {'width': round(100 * width), 'height': round(100 * height)}


def ramp(count: int) -> list[str]:
    """Colors for an ordered quantity, light to dark, distinguishable by lightness alone."""
    colors = matplotlib.colormaps['viridis'](
        np.linspace(0.72, 0.08, count) if count > 1 else [0.4] * count
    )
    return [matplotlib.colors.to_hex(c) for c in colors]


def shorten(text: str, limit: int = 28) -> str:
    flat = ' '.join(text.split())
    return flat if len(flat) <= limit else f'{flat[: limit - 1]}…'


def wrapped(title: str, width: int = 78) -> str:
    """A title on as many lines as README width needs."""
    return '\n'.join(textwrap.wrap(title, width))


def canvas(
    height: float, title: str, subtitle: str, rows: int = 1, columns: int = 1, **grid: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of README width with a title that states the finding, and its axes."""
    figure = Picture(figsize=(WIDTH, height), layout='constrained')
    FigureCanvasAgg(figure)
    lines = 0.24 * title.count('\n')
    height += lines
    figure.set_figheight(height)
    top = (0.56 + lines) / height
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(rect=(0.01, 0.01, 0.98, 0.98 - top), w_pad=0.08, h_pad=0.06)
    figure.text(0.012, 1 - 0.1 / height, title, va='top', ha='left', fontsize=13, fontweight='bold')
    figure.text(
        0.012, 1 - (0.39 + lines) / height, subtitle, va='top', ha='left', fontsize=9.5, color=SOFT
    )
    axes = figure.subplots(rows, columns, squeeze=False, **grid)
    return figure, axes


def panels(
    title: str, subtitle: str, count: int, columns: int, height: float, **grid: Any
) -> tuple[Figure, list[Axes]]:
    """Small multiples: `count` panels in rows of `columns`, each of so many inches in height."""
    rows = -(-count // columns)
    figure, axes = canvas(0.9 + rows * height, wrapped(title), subtitle, rows, columns, **grid)
    for ax in axes.flat[count:]:
        ax.set_axis_off()
    return figure, list(axes.flat[:count])


def png(figure: Figure) -> bytes:
    """The picture at twice README resolution, without a date or version inside."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=200, metadata={'Software': None})
    return buffer.getvalue()


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Moves label positions apart to at least `gap`, keeping their order."""
    order = np.argsort(values, kind='stable')
    placed = np.asarray(values, dtype=float)[order]
    clusters = [[float(v)] for v in placed]
    centers = [float(v) for v in placed]
    n = 0
    while n + 1 < len(clusters):
        reach = (len(clusters[n]) + len(clusters[n + 1])) / 2 * gap
        if centers[n + 1] - centers[n] < reach - 1e-12:
            clusters[n] += clusters.pop(n + 1)
            centers.pop(n + 1)
            centers[n] = float(np.mean(clusters[n]))
            n = max(n - 1, 0)
        else:
            n += 1
    flat = [
        center + (k - (len(members) - 1) / 2) * gap
        for center, members in zip(centers, clusters, strict=True)
        for k in range(len(members))
    ]
    out = np.empty(len(flat))
    out[order] = flat
    return out.tolist()


def label_ends(
    ax: Axes, ends: Sequence[tuple[float, float, str, str]], side: str, gap: float = 0.06
) -> None:
    """Writes (x, y, text, color) on one side of line ends that share an x, without overlap.

    `gap` is the least distance between two labels as a share of the axis height.
    """
    low, high = ax.get_ylim()
    assert isinstance(ax.figure, Figure)
    height = ax.get_position().height * ax.figure.get_figheight() * 72
    shares = [(y - low) / (high - low) for _, y, _, _ in ends]
    align, offset = ('left', 12) if side == 'right' else ('right', -12)
    for (x, y, text, color), share, place in zip(ends, shares, spread(shares, gap), strict=True):
        ax.annotate(
            text,
            (x, y),
            xytext=(offset, (place - share) * height),
            textcoords='offset points',
            va='center',
            ha=align,
            color=color,
            fontsize=9.5,
            fontweight='bold',
            annotation_clip=False,
            path_effects=[withStroke(linewidth=3, foreground='white')],
            zorder=20,
        )


def log2_axis(ax: Axes, which: str, ticks: Sequence[float], label: str) -> None:
    """A base-2 axis with exactly these ticks, as plain numbers."""
    axis = ax.xaxis if which == 'x' else ax.yaxis
    (ax.set_xscale if which == 'x' else ax.set_yscale)('log', base=2)
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: f'{v:g}'))
    axis.set_label_text(label)


def quiet_grid(ax: Axes, along: Literal['both', 'x', 'y'] = 'y') -> None:
    ax.grid(axis=along, color=LINE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(length=0)


def frame(ax: Axes) -> None:
    """A thin line around a panel without its own axes."""
    ax.tick_params(which='both', length=0)
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color(LINE)


def cells(ax: Axes, rows: int, columns: int) -> None:
    """Thin lines between the cells of a heat map."""
    ax.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    ax.grid(which='minor', color=LINE, linewidth=0.6)
    ax.tick_params(which='minor', length=0)


def ids(axis: Axis, names: Sequence[int] | np.ndarray, cell: float) -> None:
    """Labels the cells of an axis, each `cell` inches wide; no labels if they would not fit."""
    shown = names if cell > 0.13 else []
    axis.set_ticks(range(len(shown)), [str(n) for n in shown], fontsize=9 if cell > 0.25 else 7)


def color_bar(figure: Figure, image: ScalarMappable, axes: Sequence[Axes], label: str) -> None:
    """One scale for all panels, to their right."""
    size = min(1.0, 4.0 / figure.get_figheight())  # of a tall figure, at the top
    bar = figure.colorbar(image, ax=list(axes), fraction=0.025, pad=0.015, shrink=size,
                          anchor=(0.0, 1.0), aspect=30)
    bar.set_label(label, color=SOFT)
    bar.outline.set_visible(False)
