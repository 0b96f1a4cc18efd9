"""What rankings of experts share: the family of activation scores, means, and sums over weights.

Letters: E experts of a layer, D model width, F expert hidden width. Statistics are those of one
layer, by name. g is the gate that was applied to an expert, n the norm of its output, both over
the evaluated choices: those that no capacity dropped.
"""

import math
from collections.abc import Mapping

import numpy as np

from moe_jax.base.tree import Params, host
from prune.inputs.router import router_leaves

# Weight matrices of an expert. Biases are no part of a norm: most families have none.
MATRICES = ('gate', 'up', 'down')

LayerStats = Mapping[str, np.ndarray]


def mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """total / count in float64, elementwise with broadcasting; 0 where the count is 0."""
    count = np.asarray(count, np.float64)
    return np.where(count > 0, total / np.where(count > 0, count, 1.0), 0.0)


def family(
    layer_stats: LayerStats, b: float, a: int, c: int, min_tokens: int = 0
) -> np.ndarray:
    """Activation score of every expert, [E] float64: N^-b * sum of g^a n^c over its N choices.

    From `moments` [3, 3, E], whose entry [0, 0] is N. An expert without an evaluated choice scores
    0, and so does one with fewer than min_tokens where b > 0: a mean over few tokens is noise. 0 is
    the least possible score, so these experts are dropped first. Raises ValueError for a power that
    was not summed. Source: the unified form of arXiv 2606.15716 (b: frequency, a: gate, c:
    activation); the minimum is this library's.
    """
    moments = _moments(layer_stats, a, c)
    n = moments[0, 0]
    known = (n > 0) & (n >= min_tokens if b > 0 else True)
    return np.where(known, moments[a, c] * np.where(known, n, 1.0) ** -b, 0.0)


def standard_error(layer_stats: LayerStats, a: int, c: int) -> np.ndarray:
    """Standard error of the mean of g^a n^c over an expert's evaluated choices, [E] float64.

    sqrt(v / N) with the unbiased variance v = (M[2a, 2c] - M[a, c]^2 / N) / (N - 1), M the moments:
    of the mean scores `family(stats, 1, a, c)`, REAP (a=c=1) and MAN (a=0, c=1). Tokens count as
    independent, which neighbors in a text are not, so take it as a lower bound. Infinite for fewer
    than two choices. Raises ValueError where the squares were not summed (MSAN).
    """
    moments = _moments(layer_stats, 2 * a, 2 * c)
    n, total, squares = moments[0, 0], moments[a, c], moments[2 * a, 2 * c]
    known = n > 1
    n = np.where(known, n, 2.0)
    variance = np.maximum(squares - total**2 / n, 0.0) / (n - 1)
    return np.where(known, np.sqrt(variance / n), np.inf)


def weight_sums(params: Params, layer: int) -> tuple[int, np.ndarray, np.ndarray]:
    """Number of weights of an expert, and of each expert sum |w| and sum w^2: P, [E], [E] float64.

    Over all of its matrices. One matrix of one expert at a time, so that a float32 copy of a whole
    stack never exists. Raises ValueError where a weight is not finite.
    """
    experts = params[f'layer_{layer}']['moe']['experts']
    stacks = {name: experts[name] for name in MATRICES if name in experts}
    count = experts['up'].shape[0]
    absolute, square = np.zeros(count), np.zeros(count)
    for name, stack in stacks.items():
        for e in range(count):
            w = host(stack, e).astype(np.float32)
            absolute[e] += np.abs(w).sum(dtype=np.float64)
            square[e] += np.einsum('ij,ij->', w, w, dtype=np.float64)
        _check_finite(f'layer_{layer}/moe/experts/{name}', square)
    return sum(math.prod(stack.shape[1:]) for stack in stacks.values()), absolute, square


def router_norms(params: Params, layer: int) -> np.ndarray:
    """Euclidean norm of every router row, [E] float64; ValueError where it is not finite."""
    router = router_leaves(params[f'layer_{layer}']['moe'], 'router norms')
    kernel = np.asarray(router['kernel']).astype(np.float64)
    norms = np.sqrt(np.einsum('ed,ed->e', kernel, kernel))
    _check_finite(f'layer_{layer}/moe/router/kernel', norms)
    return norms


def _moments(layer_stats: LayerStats, a: int, c: int) -> np.ndarray:
    moments = np.asarray(layer_stats['moments'], np.float64)
    if not (0 <= a < moments.shape[0] and 0 <= c < moments.shape[1]):
        raise ValueError(
            f'no sum of g^{a} n^{c} in the statistics; powers go from 0 to {moments.shape[0] - 1}'
        )
    return moments


def _check_finite(path: str, sums: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(sums))
    if bad.size:
        raise ValueError(
            f'{path}: expert {bad[0]} has weights that are not finite; look for NaN and infinity '
            'in the checkpoint'
        )
