"""EAN: keep the experts whose outputs sum to the greatest norm.

Source: Expert Activation Norm of MC-Suite (Jaiswal et al., "Finding Fantastic Experts in MoEs",
arXiv 2504.05586), a baseline of REAP (ICLR 2026). Score of expert e: sum over the tokens routed to
it of |f_e(x_t)|_2, without the gate; b=0, a=0, c=1 of the family of arXiv 2606.15716. The sum
grows with how often an expert is used.

Deviation: tokens that an expert's capacity dropped are left out, as it gave no output for them.
"""


import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.experts.activation_scores import family
from prune.inputs.method import Cost, Method
from prune.inputs.statistics import Layers


def scores(stats: Layers, params: Params, cfg: Config) -> dict[int, np.ndarray]:
    """Summed output norms [E] of every MoE layer."""
    return {i: family(stats[i], b=0, a=0, c=1) for i in cfg.moe_layers}


METHOD = Method(
    name='ean',
    title='EAN',
    doc=__doc__,
    paper='MC-Suite, 2025',
    kind='drop',
    cost=Cost.PASS,
    needs=('moments',),
    scores=scores,
    place=40,
)
