"""Router norm change: keep the experts whose router rows grew the most in fine-tuning.

Source: Chowdhury et al., "A Provably Effective Method for Pruning Experts in Fine-tuned Sparse
Mixture-of-Experts", ICML 2024, and its released code. Score of expert e: |w_e|_2 after fine-tuning
less |w_e|_2 before. The theory drops the smallest change first; the code ranks the signed
difference, which is the default here. No data is read, but two checkpoints are.

Deviation: the code keeps all router columns, so that tokens may still go to experts that are gone;
a plan takes their rows out.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.model.params import check_params
from prune.experts.activation_scores import router_norms
from prune.inputs.method import Cost, Method
from prune.inputs.statistics import Layers


def scores(
    stats: Layers,
    params: Params,
    cfg: Config,
    *,
    before: Mapping[str, Any] | None = None,
    delta: Literal['signed', 'abs'] = 'signed',
) -> dict[int, np.ndarray]:
    """Change of the norm of the router row [E] of every MoE layer.

    before: parameters of the checkpoint that fine-tuning started from, laid out as these; needed.
    delta: 'signed', a row that shrank goes first; 'abs', one that changed least goes first.

    Raises ValueError without `before`, and where it has other leaves or shapes.
    """
    if before is None:
        raise ValueError("router_change: give before=, the parameters before fine-tuning; without "
                         "them the method 'router_norm' ranks by the norms alone")
    check_params(cfg, before, 'router_change, before=', only='/moe/')
    return {
        i: DELTA[delta](router_norms(params, i) - router_norms(before, i)) for i in cfg.moe_layers
    }


def _signed(change: np.ndarray) -> np.ndarray:
    return change


DELTA = {'signed': _signed, 'abs': np.abs}


METHOD = Method(
    name='router_change',
    title='router norm change',
    doc=__doc__,
    paper='Router norm change, ICML 2024',
    kind='drop',
    cost=Cost.CHECKPOINTS,
    scores=scores,
    place=140,
)
