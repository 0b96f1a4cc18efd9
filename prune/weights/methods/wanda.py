"""Wanda: small weights on quiet inputs go.

Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024,
and its released code. Score: |W_ij| |x_i|_2, the norm of input channel i over the tokens that were
routed to the expert (the hidden layer's for down), compared within each output.

Deviations: norms are plain sums over tokens, where the code averages over bundles of tokens of
unequal size. An expert that no token reached is pruned by magnitude, and few tokens are helped out
by the layer's average.
"""

import numpy as np

from prune.inputs.method import Cost, Method
from prune.weights.stack import MIN_TOKENS, TRAFFIC, Stack, by_norms

# The squares of the inputs of each matrix.
SQUARES = {'gate': 'input_square', 'up': 'input_square', 'down': 'hidden_square'}


def scores(stack: Stack, *, min_tokens: int = MIN_TOKENS) -> np.ndarray:
    """|W| times the norm of its input channel [E, in, out].

    min_tokens: an expert with n tokens, fewer than this, is given the missing ones as average
      tokens of its layer, scaled back to n.
    """
    return by_norms(stack, SQUARES[stack.leaf], min_tokens)


METHOD = Method(
    name='wanda',
    title='Wanda',
    doc=__doc__,
    paper='Wanda, ICLR 2024',
    kind='weights',
    cost=Cost.PASS,
    needs={leaf: (TRAFFIC, name) for leaf, name in SQUARES.items()},
    scores=scores,
    scope='output',
    place=30,
)
