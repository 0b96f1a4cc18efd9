"""How a number of experts is spread over layers, given a score of every expert.

E experts of a layer, G experts kept. Everything counts in units: one expert, or where the router
has groups one expert of each group, so that all groups keep equally many. A layer's units are its
experts by falling score (unit u of a grouped layer is worth the sum of each group's u-th best), so
every function here gets falling values.
"""

from collections.abc import Callable, Mapping

import numpy as np

Units = dict[int, np.ndarray]


def units(scores: Mapping[int, np.ndarray], groups: int) -> Units:
    """Falling unit values [E / groups] of every layer, of scores [E]."""
    blocks = {i: np.asarray(s, np.float64).reshape(groups, -1) for i, s in scores.items()}
    return {i: (-np.sort(-block, axis=1)).sum(axis=0) for i, block in blocks.items()}


def by_value(values: np.ndarray) -> np.ndarray:
    """The scores themselves: layers are compared as they are (Expert Drop, 'global')."""
    return values


def by_share(values: np.ndarray) -> np.ndarray:
    """Each layer's scores divided by their sum (M-SMoE's global usage)."""
    return values / _mass(values)


def by_mass(values: np.ndarray) -> np.ndarray:
    """Minus the share of the layer's score that better units hold (NLLB pruning's threshold).

    Every layer then keeps about the same share of its score.
    """
    share = by_share(values)
    return -(np.cumsum(share) - share)


# What two layers' units are compared by.
POOLED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    'global': by_value, 'share': by_share, 'mass': by_mass,
}


def pooled(values: Units, total: int, floors: Mapping[int, int], how: str) -> dict[int, int]:
    """Units of each layer: the floor first, then the best of all layers by POOLED[how].

    Ties go to the lower layer. Raises ValueError where `total` units cannot meet the floors, or are
    more than there are.
    """
    least, most = sum(floors.values()), sum(len(v) for v in values.values())
    if not least <= total <= most:
        raise ValueError(f'{total} units to keep in all layers; valid: {least} (the floors) to '
                         f'{most} (all)')
    rest = [(-key, i) for i, v in values.items() for key in POOLED[how](v)[floors[i]:]]
    chosen = [i for _, i in sorted(rest)[: total - least]]
    return {i: floors[i] + chosen.count(i) for i in values}


def covering(values: Units, share: float, floors: Mapping[int, int]) -> dict[int, int]:
    """The fewest units of each layer that hold at least `share` of its score, at least the floor.

    The rule of ESFT and of NLLB pruning, layer by layer.
    """
    counts = {}
    for i, v in values.items():
        cumulative = np.cumsum(by_share(v))
        enough = int(np.searchsorted(cumulative, share - 1e-12)) + 1
        counts[i] = max(floors[i], min(enough, len(v)))
    return counts


def _mass(values: np.ndarray) -> float:
    if (values < 0).any():
        raise ValueError("scores below 0 have no shares of a sum; spread them by 'layer' or "
                         "'global'")
    return max(float(values.sum()), 1e-300)
