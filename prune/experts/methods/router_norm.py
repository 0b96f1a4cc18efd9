"""Router norm: keep the experts with the longest router rows; no data is read.

Source: Router Weight Norm (RWN) of MC-Suite, Jaiswal et al., "Finding Fantastic Experts in MoEs",
arXiv 2504.05586. Score of expert e: |w_e|_2, w_e its row of the router's kernel. Biases and
correction biases are not read.
"""


import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.experts.activation_scores import router_norms
from prune.inputs.method import Cost, Method
from prune.inputs.statistics import Layers


def scores(stats: Layers, params: Params, cfg: Config) -> dict[int, np.ndarray]:
    """Norm of the router row [E] of every MoE layer."""
    return {i: router_norms(params, i) for i in cfg.moe_layers}


METHOD = Method(
    name='router_norm',
    title='router norm',
    doc=__doc__,
    paper='MC-Suite, 2025',
    kind='drop',
    cost=Cost.WEIGHTS,
    scores=scores,
    place=130,
)
