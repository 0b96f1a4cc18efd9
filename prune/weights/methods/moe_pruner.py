"""MoE-Pruner: Wanda with every token counted by the gate it has at the expert.

Source: Xie et al., "MoE-Pruner: Pruning Mixture-of-Experts Large Language Model using the Hints
from Its Router", 2024 (arXiv 2410.12013). Score: |W_ij| |(g_t x_ti)_t|_2 over the tokens t that
were routed to the expert, g the gate, compared within each output. Gates that are the same for all
tokens of an expert change nothing against Wanda.

Deviations: the paper does not say what stands for the input of down; here it is the hidden layer,
times the gate. Experts without tokens or with few: as for wanda. The paper's distillation after
pruning is not part of a plan.
"""

import numpy as np

from prune.inputs.method import Cost, Method
from prune.weights.stack import MIN_TOKENS, TRAFFIC, Stack, by_norms

# The squares of the inputs of each matrix.
SQUARES = {'gate': 'gated_input_square', 'up': 'gated_input_square', 'down': 'gated_hidden_square'}


def scores(stack: Stack, *, min_tokens: int = MIN_TOKENS) -> np.ndarray:
    """|W| times the norm of its gated input channel [E, in, out].

    min_tokens: an expert with n tokens, fewer than this, is given the missing ones as average
      tokens of its layer, scaled back to n.
    """
    return by_norms(stack, SQUARES[stack.leaf], min_tokens)


METHOD = Method(
    name='moe_pruner',
    title='MoE-Pruner',
    doc=__doc__,
    paper='MoE-Pruner, 2024',
    kind='weights',
    cost=Cost.PASS,
    needs={leaf: (TRAFFIC, name) for leaf, name in SQUARES.items()},
    scores=scores,
    scope='output',
    place=40,
)
