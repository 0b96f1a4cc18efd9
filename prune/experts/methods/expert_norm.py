"""Expert norm: keep the experts with the largest weights; no data is read.

Source: Expert Weight Norm (EWN) of MC-Suite, Jaiswal et al., "Finding Fantastic Experts in MoEs",
arXiv 2504.05586. Score of expert e: Frobenius norm of all its weight matrices together,
sqrt(sum w^2).

Deviation: biases, which the paper's models do not have, are left out.
"""


import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.experts.activation_scores import weight_sums
from prune.inputs.method import Cost, Method
from prune.inputs.statistics import Layers


def scores(stats: Layers, params: Params, cfg: Config) -> dict[int, np.ndarray]:
    """Norm of the weights [E] of every MoE layer."""
    return {i: np.sqrt(weight_sums(params, i)[2]) for i in cfg.moe_layers}


METHOD = Method(
    name='expert_norm',
    title='expert norm',
    doc=__doc__,
    paper='MC-Suite, 2025',
    kind='drop',
    cost=Cost.WEIGHTS,
    scores=scores,
    place=120,
)
