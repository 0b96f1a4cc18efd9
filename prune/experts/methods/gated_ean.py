"""Gated EAN: keep the experts that add the most to the layer's output, summed over tokens.

Source: the summed form of REAP in its released code ("weighted EAN sum"; Lasby et al., "REAP the
Experts", ICLR 2026). Score of expert e: sum over the tokens routed to it of g_te |f_e(x_t)|_2; b=0,
a=1, c=1 of the family of arXiv 2606.15716. The sum grows with how often an expert is used, which
REAP's mean does not.

Deviations: gates are those that the model applies; the code renormalizes them over the chosen
experts, which sums cannot undo, and which changes nothing in a model that does so itself. Tokens
that an expert's capacity dropped are left out.
"""


import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.experts.activation_scores import family
from prune.inputs.method import Cost, Method
from prune.inputs.statistics import Layers


def scores(stats: Layers, params: Params, cfg: Config) -> dict[int, np.ndarray]:
    """Summed gate times output norm [E] of every MoE layer."""
    return {i: family(stats[i], b=0, a=1, c=1) for i in cfg.moe_layers}


METHOD = Method(
    name='gated_ean',
    title='gated EAN',
    doc=__doc__,
    paper='REAP, ICLR 2026 (summed)',
    kind='drop',
    cost=Cost.PASS,
    needs=('moments',),
    scores=scores,
    place=50,
)
