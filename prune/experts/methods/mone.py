"""MoNE: keep the experts that are used much and vary much; the others become their mean output.

Source: Zhang et al., "MoNE: Replacing Redundant Experts with Lightweight Novices for Structured
Pruning of MoE", arXiv 2507.00390, and its released code. With v_d the variance of the d-th output
of expert e over the tokens routed to it (divisor N_e - 1), the score is sqrt(sum_d v_d) times the
mean applied gate (1/T) sum_t g_te: how far off a constant would be, times how much that counts. An
expert that is dropped is replaced by its mean output (REPLACE).

Deviations: the code skips the first batch and mixes old means with new ones in its running
variance; here it is exact. The weights of the two factors in the code cannot change the ranking and
are left out. Tokens that an expert's capacity dropped are left out of the variance.
"""

from typing import Literal

import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.experts.activation_scores import mean
from prune.inputs.method import Cost, Method
from prune.inputs.statistics import Layers, LayerStats


def scores(
    stats: Layers,
    params: Params,
    cfg: Config,
    *,
    fluctuation: Literal['deviation', 'variance'] = 'deviation',
) -> dict[int, np.ndarray]:
    """Fluctuation times routing score [E] of every MoE layer.

    fluctuation: 'deviation', the paper's sqrt(sum_d v_d), of the output's own unit; 'variance',
      sum_d v_d, the mean squared error of the constant, by which large outputs weigh more.
    """
    used = {i: mean(stats[i]['gate_sum'], stats[i]['tokens']) for i in cfg.moe_layers}
    return {i: FLUCTUATION[fluctuation](variance(stats[i])) * gate for i, gate in used.items()}


def variance(layer_stats: LayerStats) -> np.ndarray:
    """Unbiased variance of an expert's output summed over D, [E] float64.

    0 for an expert that was evaluated at most once.
    """
    n = np.asarray(layer_stats['moments'], np.float64)[0, 0]
    total = np.asarray(layer_stats['output_sum'], np.float64)
    around = layer_stats['output_square'] - total * mean(total, n[:, None])
    # Rounding can leave a constant output slightly below zero.
    return mean(np.maximum(around, 0.0).sum(axis=1), np.maximum(n - 1, 0))


def _same(variance: np.ndarray) -> np.ndarray:
    return variance


FLUCTUATION = {'deviation': np.sqrt, 'variance': _same}


METHOD = Method(
    name='mone',
    title='MoNE',
    doc=__doc__,
    paper='MoNE, 2025',
    kind='drop',
    cost=Cost.PASS,
    needs=('tokens', 'gate_sum', 'moments', 'output_sum', 'output_square'),
    scores=scores,
    replace='mean',
    place=90,
)
