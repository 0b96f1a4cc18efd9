"""Magnitude: the smallest weights go.

Source: the oldest criterion, e.g. Han et al., "Learning both Weights and Connections for Efficient
Neural Networks", NeurIPS 2015. Score: |W|.
"""

import numpy as np

from prune.weights.stack import Stack

PAPER = 'Han et al., NeurIPS 2015'
NEEDS = {'gate': (), 'up': (), 'down': ()}
COST = 'weights only'
SCOPE = 'matrix'


def scores(stack: Stack) -> np.ndarray:
    """|W| [E, in, out]."""
    return np.abs(stack.weights)
