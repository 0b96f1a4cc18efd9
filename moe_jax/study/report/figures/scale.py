"""A signed square root, on which both large damage and the last hundredths can be read."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator


def signed_root(ax: Axes, which: str, lowest: float, highest: float, apart: float = 0.1) -> None:
    """Gives the 'x' or 'y' axis this scale from below zero to above it, with round ticks.

    `apart` is the least distance of two ticks, as a share of the scale.
    """
    axis = ax.xaxis if which == 'x' else ax.yaxis
    (ax.set_xscale if which == 'x' else ax.set_yscale)(
        'function',
        functions=(
            lambda v: np.sign(v) * np.sqrt(np.abs(v)),
            lambda v: np.sign(v) * np.square(v),
        ),
    )
    axis.set_major_locator(FixedLocator(_ticks(lowest, highest, apart)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda v, _: f'{v:+g}' if v else '0'))
    (ax.set_xlim if which == 'x' else ax.set_ylim)(lowest * 1.15, highest * 1.3)


def _ticks(lowest: float, highest: float, apart: float) -> list[float]:
    """Round values on both sides of zero, at least `apart` of the square-root scale apart."""
    gap = (math.sqrt(highest) + math.sqrt(-lowest)) * apart
    ticks = [0.0]
    for sign, end in ((1, highest), (-1, -lowest)):
        last = math.inf
        for value in (50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01):
            root = math.sqrt(value)
            if value <= end * 1.05 and last - root >= gap and root >= gap:
                ticks.append(sign * value)
                last = root
    return ticks
