"""Spread a budget over layers so that the sum of their errors is the least possible, exactly.

A dynamic programme over layers. A state is what the layers so far cost and how far they err in the
best way; one that another beats in both is forgotten. So there are never more states than distinct
costs: where all experts cost alike, as many as experts. Costs count in their common divisor.

Letters: G experts that a layer keeps.
"""

import math
from collections.abc import Mapping

import numpy as np

from moe_jax.base.checks import integer

Curves = Mapping[int, Mapping[int, float]]


def allocate(
    curves: Curves,
    *,
    total: int | None = None,
    cost: Mapping[int, int] | None = None,
    budget: int | None = None,
) -> dict[int, int]:
    """{layer: G} of the least sum of curves[layer][G], within a total or a budget.

    curves: for each layer the error of every G it may keep (`prune.subsets.curve`); its smallest G
      is its floor. The errors of layers are added, so they must be of one unit.
    total: experts in all layers, at most.
    cost, budget: {layer: cost of one expert}, and the costs of all that is kept, at most; whole
      numbers of parameters, bytes or anything else.

    Of equal sums the cheapest, of those the one whose last layer keeps the most, and so on. Raises
    ValueError for a budget below the floors, with the least that is possible.
    """
    price, limit, unit = _amounts(curves, total, cost, budget)
    options = {i: _sorted(i, curve) for i, curve in sorted(curves.items())}
    floors = {i: int(counts[0]) * price[i] for i, (counts, _) in options.items()}
    ahead = sum(floors.values())
    if ahead > limit:
        name, amount = ('total', total) if budget is None else ('budget', budget)
        raise ValueError(f'{name}={amount:,} is too small: the fewest experts of the layers, '
                         f'{[int(c[0]) for c, _ in options.values()]}, take {ahead * unit:,}')
    spent, errors, steps = np.zeros(1, np.int64), np.zeros(1), []
    for i, (counts, values) in options.items():
        ahead -= floors[i]
        spent = (spent[:, None] + counts * price[i]).ravel()
        errors = (errors[:, None] + values).ravel()
        states = _unbeaten(spent, errors, limit - ahead)
        spent, errors = spent[states], errors[states]
        steps.append((i, counts, states))
    found, state = {}, len(spent) - 1
    for i, counts, states in reversed(steps):
        state, choice = divmod(int(states[state]), len(counts))
        found[i] = int(counts[choice])
    return dict(sorted(found.items()))


def _unbeaten(spent: np.ndarray, errors: np.ndarray, limit: int) -> np.ndarray:
    """States within the limit, by rising cost and falling error; of equal ones the first."""
    order = np.lexsort((errors, spent))
    order = order[spent[order] <= limit]
    best = np.minimum.accumulate(errors[order])
    return order[np.r_[True, errors[order][1:] < best[:-1]]]


def _amounts(
    curves: Curves, total: int | None, cost: Mapping[int, int] | None, budget: int | None
) -> tuple[dict[int, int], int, int]:
    """Cost of an expert of each layer and the limit, both in units, and the unit."""
    if not curves:
        raise ValueError('allocate: there are no layers')
    if (total is None) == (budget is None) or (cost is None) != (budget is None):
        raise ValueError('allocate: give either total= (experts in all layers), or budget= and '
                         'cost= (of one expert of each layer)')
    if cost is None:
        return dict.fromkeys(curves, 1), integer('allocate: total', total, None), 1
    if set(cost) != set(curves):
        raise ValueError(f'allocate: cost has layers {sorted(cost)}, curves {sorted(curves)}')
    price = {i: integer(f'allocate: cost[{i}]', value, 1) for i, value in cost.items()}
    unit, limit = math.gcd(*price.values()), integer('allocate: budget', budget, None)
    return {i: p // unit for i, p in price.items()}, limit // unit, unit


def _sorted(layer: int, curve: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Counts in rising order and their errors, checked."""
    counts = np.array(sorted(curve), np.int64)
    values = np.array([curve[c] for c in sorted(curve)], np.float64)
    if not len(counts) or counts[0] < 0 or not np.isfinite(values).all():
        raise ValueError(f'allocate: the curve of layer {layer} needs finite errors of counts of '
                         f'at least 0; got {dict(curve)}')
    return counts, values
