"""SparseGPT: prune input by input, and let the weights that stay make up for what went.

Source: Frantar and Alistarh, "SparseGPT: Massive Language Models Can be Accurately Pruned in
One-Shot", ICML 2023, and released code. Per expert H = sum x x^T over its tokens (the hidden layer
for down), its diagonal raised by `damping` times its mean; an input goes where w^2 / U_jj^2 is
lowest, H^-1 = U^T U, chosen for 128 inputs at a time, and the inputs after it are updated for the
least error of the outputs. Weights of inputs that were always zero become zero.

Deviations: the number that goes is exact for each output of a matrix; the code takes a quantile
over all outputs of a block. Where H is singular the damping grows tenfold, three times; after that,
and for an expert that no token reached, the mask is that of wanda and no weight is changed (noted
as `fallback`). H of an expert with few tokens is helped out by the layer's average, as in wanda.
"""

from typing import Annotated

import numpy as np

from prune.inputs.method import Cost, Method
from prune.inputs.options import AtLeast
from prune.weights.cut import per_output, per_pattern, share
from prune.weights.obs import factor
from prune.weights.obs import solve as surgeon
from prune.weights.stack import (
    MIN_TOKENS,
    TRAFFIC,
    Stack,
    blended,
    channel_norms,
    mean_per_token,
)
from prune.weights.zeros import Pattern

# The Gram matrix of the inputs of each matrix.
GRAM = {'gate': 'input_gram', 'up': 'input_gram', 'down': 'hidden_gram'}
TRIES = 4


def solve(
    stack: Stack,
    sparsity: float,
    pattern: Pattern | None,
    *,
    damping: Annotated[float, AtLeast(0.0, 'a number of 0 or more')] = 0.01,
    block: Annotated[int, AtLeast(1, 'at least one input')] = 128,
    min_tokens: int = MIN_TOKENS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mask bool [E, in, out], weights float32 [E, in, out], ids of experts that fell back.

    damping: share of the mean of H's diagonal added to it.
    block: inputs among which is chosen at a time (with a pattern, its groups).
    min_tokens: an expert with n tokens, fewer than this, is given the missing ones as average
      tokens of its layer, scaled back to n.
    """
    grams, tokens = stack.stats[GRAM[stack.leaf]], stack.stats['evaluated']
    mean = mean_per_token(grams, tokens)
    kept, made, fallback = np.ones(stack.weights.shape, bool), stack.weights.copy(), []
    for e, weights in enumerate(stack.weights):
        gram = blended(grams[e:e + 1], tokens[e:e + 1], mean, min_tokens)[0]
        upper = factor(gram, damping, TRIES) if tokens[e] and gram.any() else None
        if upper is None:
            fallback.append(e)
            continue
        start = np.where(np.diagonal(gram)[:, None] == 0, 0.0, weights)
        kept[e], made[e] = _solved(start, upper, sparsity, pattern, block)
    if fallback:
        kept[fallback] = _wanda(stack, fallback, sparsity, pattern, min_tokens)
    return kept, np.where(kept, made, np.float32(0)), np.array(fallback, int)


def _solved(
    weights: np.ndarray, upper: np.ndarray, sparsity: float, pattern: Pattern | None, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mask and new weights [in, out] of one expert's matrix."""
    if pattern is None:
        def count(start: int, stop: int) -> int:
            return share(sparsity, stop) - share(sparsity, start)
        return surgeon(weights, upper, count, block, block)
    n, m = pattern
    return surgeon(weights, upper, lambda start, stop: m - n, m, m * max(1, block // m))


def _wanda(stack: Stack, ids: list[int], sparsity: float, pattern: Pattern | None, least: int
           ) -> np.ndarray:
    squares = np.diagonal(stack.stats[GRAM[stack.leaf]], axis1=1, axis2=2)
    norms = channel_norms(squares, stack.stats['evaluated'], least)[ids]
    scores = np.abs(stack.weights[ids]) * norms[:, :, None]
    return per_output(scores, sparsity) if pattern is None else per_pattern(scores, pattern)


METHOD = Method(
    name='sparsegpt',
    title='SparseGPT',
    doc=__doc__,
    paper='SparseGPT, ICML 2023',
    kind='weights',
    cost=Cost.GRAMS,
    needs={leaf: (TRAFFIC, name) for leaf, name in GRAM.items()},
    solve=solve,
    scope='output',
    place=60,
)
