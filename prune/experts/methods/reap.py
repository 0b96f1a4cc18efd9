"""REAP: keep the experts that add the most to the layer's output where they are used.

Source: Lasby et al., "REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression", ICLR
2026, and its released code. Score of expert e: (1/N_e) sum of g_te |f_e(x_t)|_2 over the N_e tokens
routed to it; b=1, a=1, c=1 of the family of arXiv 2606.15716.
`prune.experts.activation_scores.standard_error` says how sure the mean is, and
`prune.experts.protect.super_experts` finds those the paper's code can protect.

Deviations: gates are those that the model applies; the code renormalizes them over the chosen
experts by default, which sums cannot undo, and which changes nothing in a model that does so
itself. Tokens that an expert's capacity dropped are left out. The minimum of tokens is this
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
    """Mean gate times output norm [E] of every MoE layer.

    min_tokens: an expert evaluated for fewer tokens scores 0, so that a mean over few does not
      decide.
    """
    return {i: family(stats[i], b=1, a=1, c=1, min_tokens=min_tokens) for i in cfg.moe_layers}


METHOD = Method(
    name='reap',
    title='REAP',
    doc=__doc__,
    paper='REAP, ICLR 2026',
    kind='drop',
    cost=Cost.PASS,
    needs=('moments',),
    scores=scores,
    place=60,
)
