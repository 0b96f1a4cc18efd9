"""The layers and sums of statistics that a picture shows, checked before anything is drawn."""

from collections.abc import Collection, Sequence

import numpy as np

from moe_jax.calibration.stats import Stats
from moe_jax.calibration.table import Sums

Layers = int | Sequence[int] | None


def chosen(picture: str, there: Sequence[int], layers: Layers) -> tuple[int, ...]:
    """The layers to draw: all (None), those named, or so many, evenly spaced from first to last.

    Raises ValueError for a layer that does not exist and for no layer at all.
    """
    there = tuple(sorted(there))
    if isinstance(layers, int | np.integer):
        if layers < 1:
            raise ValueError(f'{picture}: layers={layers}: how many to draw, at least 1')
        places = np.linspace(0, len(there) - 1, min(layers, len(there))).round().astype(int)
        return tuple(there[p] for p in places)
    wanted = there if layers is None else tuple(layers)
    if not wanted or not set(wanted) <= set(there):
        raise ValueError(f'{picture}: layers={layers}; there are {list(there)}')
    return wanted


def sums(
    picture: str, stats: Stats, layers: Sequence[int], group: str | None, names: Collection[str]
) -> dict[int, Sums]:
    """{layer: the named statistics} of one group, or of all merged.

    Raises ValueError, with what to do, for a group or a statistic that is not there and for
    statistics that saw no token.
    """
    if group is not None and group not in stats.groups:
        raise ValueError(f'{picture}: no group {group!r} in these statistics; there are '
                         f'{sorted(stats.groups)}')
    layers_seen = {i: stats.layer(i, group, {*names, 'tokens'}) for i in layers}
    for i, layer in layers_seen.items():
        if missing := sorted({*names, 'tokens'} - set(layer)):
            raise ValueError(
                f'{picture}: layer {i} has no statistic {", ".join(map(repr, missing))}; observe '
                'again: stats = moe_jax.observe(cfg, params, batches)'
            )
        if not layer['tokens'] > 0:
            raise ValueError(f'{picture}: no token of group {group!r} was observed; observe some '
                             'batches of it first')
    return layers_seen
