"""MAN: keep the experts with the greatest mean output norm where they are used.

Source: Mean Activation Norm of Liu et al., "How to Score Experts for One-Shot MoE Expert Pruning",
arXiv 2606.15716. Score of expert e: (1/N_e) sum of |f_e(x_t)|_2 over the N_e tokens routed to it;
b=1, a=0, c=1 of its family. Neither frequency nor gate counts, which the paper advises where the
task is not known beforehand.

Deviations: tokens that an expert's capacity dropped are left out. The minimum of tokens is this
library's.
"""


import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.experts.activation_scores import family
from prune.inputs.method import Cost, Method
from prune.inputs.statistics import Layers


def scores(
    stats: Layers,
    params: Params,
    cfg: Config,
    *,
    min_tokens: int = 0,
) -> dict[int, np.ndarray]:
    """Mean output norm [E] of every MoE layer.

    min_tokens: an expert evaluated for fewer tokens scores 0, so that a mean over few does not
      decide.
    """
    return {i: family(stats[i], b=1, a=0, c=1, min_tokens=min_tokens) for i in cfg.moe_layers}


METHOD = Method(
    name='man',
    title='MAN',
    doc=__doc__,
    paper='MAN and MSAN, 2026',
    kind='drop',
    cost=Cost.PASS,
    needs=('moments',),
    scores=scores,
    place=70,
)
