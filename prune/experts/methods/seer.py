"""SEER-MoE: keep the heavy hitters, by soft counts of how much the router gives each expert.

Source: Muzio, Sun and He, "SEER-MoE: Sparse Expert Efficiency through Regularization for
Mixture-of-Experts", arXiv 2404.05089, the pruning stage. Score of expert e: sum_t g_te, the gates
applied over all tokens. Its hard counts are the method `frequency`.

Deviations: the paper's code is not public, and its soft count can be read as gates of the chosen
experts or as full probabilities, so both are here. Where a model does not renormalize gates the two
differ by the unchosen mass alone. The paper's fine-tuning with fewer active experts and an entropy
penalty is no part of a plan.
"""

from typing import Literal

import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.inputs.method import Cost, Method
from prune.inputs.statistics import Layers

SOFT_COUNT = {'gates': 'gate_sum', 'probs': 'prob_sum'}


def scores(
    stats: Layers,
    params: Params,
    cfg: Config,
    *,
    by: Literal['gates', 'probs'] = 'gates',
) -> dict[int, np.ndarray]:
    """Soft counts [E] of every MoE layer.

    by: 'gates', the applied gates of chosen experts; 'probs', the full router probability (softmax,
      or sigmoids as shares of one), chosen or not.
    """
    return {i: np.asarray(stats[i][SOFT_COUNT[by]], np.float64) for i in cfg.moe_layers}


METHOD = Method(
    name='seer',
    title='SEER-MoE',
    doc=__doc__,
    paper='SEER-MoE, 2024',
    kind='drop',
    cost=Cost.PASS,
    needs=('gate_sum',),
    option_needs={'by': {'gates': (), 'probs': ('prob_sum',)}},
    scores=scores,
    place=20,
)
