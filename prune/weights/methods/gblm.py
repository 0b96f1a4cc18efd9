"""GBLM: Wanda, and the gradient of the language-model loss beside it.

Source: Das, Ma and Shen, "Beyond Size: How Gradients Shape Pruning Decisions in Large Language
Models" (GBLM-Pruner), 2023, and its released code. Score: |W_ij| (|x_i|_2 + alpha G_ij), G the
accumulated magnitude of the gradient by W_ij, compared within each output.

Deviations: the paper's two terms grow differently with the amount of data, which makes the meaning
of alpha depend on it. Here both are per token of the data: |x_i|_2 is sqrt(sum x_i^2 / N) and G is
sum |dW| / N or sqrt(sum dW^2 / N), N tokens, gradients of the summed loss of each row. Experts
without tokens or with few: as for wanda.
"""

from typing import Annotated, Literal

import numpy as np

from prune.inputs.method import Cost, Method
from prune.inputs.options import AtLeast
from prune.weights.stack import MIN_TOKENS, TRAFFIC, Stack, channel_norms

# The squares of the inputs of each matrix.
SQUARES = {'gate': 'input_square', 'up': 'input_square', 'down': 'hidden_square'}


def scores(
    stack: Stack,
    *,
    alpha: Annotated[float, AtLeast(0.0, 'a number of 0 or more')] = 100.0,
    norm: Literal['l1', 'l2'] = 'l1',
    min_tokens: int = MIN_TOKENS,
) -> np.ndarray:
    """|W| (norm of its input channel + alpha times its gradient) [E, in, out], per token.

    alpha: weight of the gradient.
    norm: of the gradients of all rows, the sum of magnitudes (l1) or the root of the sum of squares
      (l2).
    min_tokens: an expert with n tokens, fewer than this, is given the missing ones as average
      tokens of its layer, scaled back to n.
    """
    seen, tokens = stack.stats, float(stack.stats['tokens'])
    norms = channel_norms(seen[SQUARES[stack.leaf]], seen['evaluated'], min_tokens)
    gradient = (seen[f'grad_abs/{stack.leaf}'] / tokens if norm == 'l1'
                else np.sqrt(seen[f'grad_square/{stack.leaf}'] / tokens))
    both = norms[:, :, None] / np.sqrt(tokens) + alpha * gradient
    return np.abs(stack.weights) * both.astype(np.float32)


METHOD = Method(
    name='gblm',
    title='GBLM',
    doc=__doc__,
    paper='GBLM-Pruner, 2023',
    kind='weights',
    cost=Cost.GRADIENTS,
    needs={leaf: (TRAFFIC, 'tokens', name, f'grad_abs/{leaf}') for leaf, name in SQUARES.items()},
    option_needs={'norm': {'l2': {leaf: (f'grad_square/{leaf}',) for leaf in SQUARES}}},
    scores=scores,
    scope='output',
    place=50,
)
