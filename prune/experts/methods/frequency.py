"""One-shot frequency pruning: keep the experts that are the router's first choice most often.

Source: the baseline of UNCURL (ENLSP-IV 2024, section on baselines); the idea is older, e.g. Kim et
al. 2021, "Scalable and Efficient MoE Training for Multitask Multilingual Models". Ties go to
the lower index.
"""


import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.inputs.method import Cost, Method
from prune.inputs.statistics import Layers


def scores(stats: Layers, params: Params, cfg: Config) -> dict[int, np.ndarray]:
    """Tokens whose first choice an expert is, [E] per MoE layer."""
    return {i: stats[i]['count_top1'].astype(np.float64) for i in cfg.moe_layers}


METHOD = Method(
    name='frequency',
    title='frequency',
    doc=__doc__,
    paper='baseline in UNCURL, ENLSP-IV 2024',
    kind='drop',
    cost=Cost.PASS,
    needs=('count_top1',),
    scores=scores,
    place=10,
)
