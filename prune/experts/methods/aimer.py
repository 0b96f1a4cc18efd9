"""AIMER: keep the experts whose weights are spread most unevenly; no data is read.

Source: Liu et al., "AIMER: Calibration-Free Task-Agnostic MoE Pruning", arXiv 2603.18492. With all
P weights of an expert's matrices pooled, the ratio is mean |w| / sqrt(mean w^2), from 1/sqrt(P)
(one weight that is not zero) to 1 (all of one size); a Gaussian gives sqrt(2/pi) = 0.798. Which end
goes is from the authors' repository (ZongfangLiu/AIMER, README): higher ratios are more removable,
so 'low' is kept. Training moves weights from a Gaussian or uniform start towards heavier tails, so
an expert that learned little has a high ratio.

Deviations: the score that is returned is 1 - ratio ('low'), so that higher is kept and none is
negative. An expert of zeros, which has no ratio, scores 0 whatever is kept and is dropped first.
Biases are left out.
"""

from typing import Literal

import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.experts.activation_scores import weight_sums
from prune.inputs.method import Cost, Method
from prune.inputs.statistics import Layers


def scores(
    stats: Layers,
    params: Params,
    cfg: Config,
    *,
    keep: Literal['low', 'high'] = 'low',
) -> dict[int, np.ndarray]:
    """Scores [E] of every MoE layer, in [0, 1].

    keep: 'low' ratios, as the paper does, or 'high' ones, the opposite, to compare.
    """
    return {i: SCORE[keep](*ratio(params, i)) for i in cfg.moe_layers}


def ratio(params: Params, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """mean |w| / root mean square of w of every expert, [E] float64, and which have weights, [E].

    The ratio of an expert of zeros is 0.
    """
    size, absolute, square = weight_sums(params, layer)
    some = square > 0
    # At most 1 by Cauchy-Schwarz; rounding may pass it.
    return np.minimum(absolute / np.sqrt(size * np.where(some, square, 1.0)), 1.0), some


def _low(ratio: np.ndarray, some: np.ndarray) -> np.ndarray:
    return np.where(some, 1.0 - ratio, 0.0)


def _high(ratio: np.ndarray, some: np.ndarray) -> np.ndarray:
    return ratio


SCORE = {'low': _low, 'high': _high}


METHOD = Method(
    name='aimer',
    title='AIMER',
    doc=__doc__,
    paper='AIMER, 2026',
    kind='drop',
    cost=Cost.WEIGHTS,
    scores=scores,
    place=110,
)
