"""Weights drawn at random go: the floor that every criterion has to beat.

No paper; no statistics.
"""

import numpy as np

from prune.plans.masks import LEAVES
from prune.weights.stack import Stack

PAPER = 'baseline'
NEEDS = {'gate': (), 'up': (), 'down': ()}
COST = 'weights only'
SCOPE = 'matrix'


def scores(stack: Stack, *, seed: int = 0) -> np.ndarray:
    """Uniform numbers [E, in, out].

    seed: chooses the draw, with layer and leaf.
    """
    rng = np.random.default_rng([seed, stack.layer, LEAVES.index(stack.leaf)])
    return rng.random(stack.weights.shape, np.float32)
