"""Weights drawn at random go: the floor that every criterion has to beat.

No paper; no statistics.
"""

import numpy as np

from prune.inputs.method import Cost, Method
from prune.plans.masks import LEAVES
from prune.weights.stack import Stack


def scores(stack: Stack, *, seed: int = 0) -> np.ndarray:
    """Uniform numbers [E, in, out].

    seed: chooses the draw, with layer and leaf.
    """
    rng = np.random.default_rng([seed, stack.layer, LEAVES.index(stack.leaf)])
    return rng.random(stack.weights.shape, np.float32)


METHOD = Method(
    name='random_weights',
    title='random weights',
    doc=__doc__,
    paper='baseline',
    kind='weights',
    cost=Cost.WEIGHTS,
    scores=scores,
    scope='matrix',
    place=70,
)
