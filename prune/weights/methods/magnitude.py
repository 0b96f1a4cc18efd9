"""Magnitude: the smallest weights go.

Source: the oldest criterion, e.g. Han et al., "Learning both Weights and Connections for Efficient
Neural Networks", NeurIPS 2015. Score: |W|.
"""

import numpy as np

from prune.inputs.method import Cost, Method
from prune.weights.stack import Stack


def scores(stack: Stack) -> np.ndarray:
    """|W| [E, in, out]."""
    return np.abs(stack.weights)


METHOD = Method(
    name='magnitude',
    title='magnitude',
    doc=__doc__,
    paper='Han et al., NeurIPS 2015',
    kind='weights',
    cost=Cost.WEIGHTS,
    scores=scores,
    scope='matrix',
    place=10,
)
