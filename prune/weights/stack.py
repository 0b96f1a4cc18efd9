"""What a criterion for weights reads: one matrix of all experts of a layer, and their statistics.

E experts, R router rows, D model width, F expert hidden width. Kernels are [in, out] (y = x W):
gate and up read the router's input x [D], down the hidden layer h [F].
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from moe_jax.config import Config

MIN_TOKENS = 32
TRAFFIC = 'moments'  # the statistic of how many tokens each expert was evaluated for
# The channel norm of experts without traffic: so small that in scopes wider than a matrix their
# weights go first; a power of two, so that their order is exactly that of magnitudes.
NEVER = 2.0**-60


class Stack(NamedTuple):
    """weights float32 [E, in, out] of a leaf of a layer; stats by expert, [E, ...] float64.

    Beside the statistics asked for, stats has `evaluated` [E], the tokens each expert was evaluated
    for, and scalars as they are.
    """

    layer: int
    leaf: str
    weights: np.ndarray
    stats: Mapping[str, np.ndarray]


def by_expert(seen: Mapping[str, np.ndarray], cfg: Config, layer: int) -> dict[str, np.ndarray]:
    """Statistics of router rows [R, ...] as statistics of experts [E, ...].

    Rows that share an expert are summed; rows of constants and closed rows are left out.
    """
    sums = dict(seen)
    if TRAFFIC in sums:
        sums['evaluated'] = sums.pop(TRAFFIC)[0, 0]
    if (alias := cfg.alias(layer)) is None:
        return sums
    table, experts = np.asarray(alias), cfg.experts[layer]
    real = (table >= 0) & (table < experts)
    for name, rows in sums.items():
        if rows.ndim:
            sums[name] = np.zeros((experts, *rows.shape[1:]), rows.dtype)
            np.add.at(sums[name], table[real], rows[real])
    return sums


def blended(sums: np.ndarray, tokens: np.ndarray, mean: np.ndarray, least: int) -> np.ndarray:
    """Sums over tokens [E, ...] of experts with fewer than `least` tokens, drawn towards the layer.

    With n tokens, least - n more are made up of the layer's `mean` per token [...], and the whole
    is scaled back to n tokens: n / least * (sums + (least - n) * mean). So a norm over a handful of
    tokens does not decide alone, and a rare expert still weighs little against others.
    """
    n = tokens.reshape(-1, *[1] * mean.ndim)
    few = n < least
    return np.where(few, (sums + (least - n) * mean) * (n / max(least, 1)), sums)


def mean_per_token(sums: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Sums over experts and their tokens [E, ...] per token [...]."""
    return sums.sum(axis=0) / max(float(tokens.sum()), 1.0)


def by_norms(stack: Stack, squares: str, min_tokens: int) -> np.ndarray:
    """|W| times the norm of its input channel [E, in, out]; squares: the statistic of the norms."""
    norms = channel_norms(stack.stats[squares], stack.stats['evaluated'], min_tokens)
    return np.abs(stack.weights) * norms[:, :, None]


def channel_norms(squares: np.ndarray, tokens: np.ndarray, least: int) -> np.ndarray:
    """Norm of each input channel over an expert's tokens, sqrt(sum x_j^2), float32 [E, in].

    squares: the sums [E, in]; tokens [E]; least: as for `blended`. An expert whose norms are all
    zero gets equal ones, so that magnitudes order its weights.
    """
    sums = blended(squares, tokens, mean_per_token(squares, tokens), least)
    silent = ~(sums > 0).any(axis=1, keepdims=True)
    return np.where(silent, NEVER, np.sqrt(sums)).astype(np.float32)
