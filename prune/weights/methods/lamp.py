"""LAMP: magnitudes as shares of what is left of their matrix, so that all can be compared.

Source: Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021. Score of a
weight: w^2 over the sum of v^2 of all weights with |v| >= |w| in its unit. The single largest
weight of a unit scores 1, so none is emptied before all others are down to one; within a unit the
order is that of magnitudes, so the scope must be wider than that for a difference.

Deviation: equal weights count each other, and so score the same; the code gives them different
scores by their place.
"""

from typing import Literal

import numpy as np

from prune.inputs.method import Cost, Method
from prune.weights.stack import Stack


def scores(stack: Stack, *, unit: Literal['expert', 'layer'] = 'expert') -> np.ndarray:
    """w^2 / sum of v^2 over |v| >= |w|, [E, in, out] in [0, 1].

    unit: every expert's matrix by itself ('expert'), so that no expert is emptied, or the matrices
      of all experts of a layer together ('layer'), so that weak experts lose more.
    """
    squares = np.square(stack.weights, dtype=np.float64)
    rows = squares.reshape(len(squares) if unit == 'expert' else 1, -1)
    return np.stack([_shares(row) for row in rows]).reshape(squares.shape)


def _shares(squares: np.ndarray) -> np.ndarray:
    """Each of the squares [n] over the sum of those that are not smaller; 0 for 0."""
    order = np.argsort(squares)
    ranked = squares[order]
    new = np.r_[True, ranked[1:] > ranked[:-1]]
    first = np.maximum.accumulate(np.where(new, np.arange(len(ranked)), 0))  # of its equals
    rest = np.cumsum(ranked[::-1])[::-1][first]
    shares = np.empty(len(squares), np.float32)
    shares[order] = np.divide(ranked, rest, out=np.zeros_like(ranked), where=rest > 0)
    return shares


METHOD = Method(
    name='lamp',
    title='LAMP',
    doc=__doc__,
    paper='LAMP, ICLR 2021',
    kind='weights',
    cost=Cost.WEIGHTS,
    scores=scores,
    scope='global',
    place=20,
)
