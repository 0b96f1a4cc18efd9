"""Frequency merging: the most used experts are centres, every other one joins the most similar.

Source: the baseline of UNCURL (ENLSP-IV 2024, table 3). It differs from `uncurl` in the partition
alone: same similarity, alignment, weights and router. Ties go to the lower index.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_jax.config import Config
from prune.experts.merge import merge
from prune.experts.routers import RouterInit
from prune.plans.layer import LayerPlan
from prune.similarity.cluster import Center, nearest, similarity
from prune.subsets.top import top

PAPER = 'baseline in UNCURL, ENLSP-IV 2024'
KIND = 'merge'
NEEDS = ('tokens', 'count_top1', 'logit_gram')
COST = 'one pass'


def plan(
    stats: Mapping[int, Mapping[str, np.ndarray]],
    params: Mapping[str, Any],
    cfg: Config,
    counts: Mapping[int, int],
    *,
    center: Center = 'none',
    router_init: RouterInit = 'random',
    align: bool = True,
    seed: int = 0,
) -> dict[int, LayerPlan]:
    """One plan per MoE layer; the options mean what they mean for `uncurl`."""
    plans = {}
    for i, groups in counts.items():
        count, alike = stats[i]['count_top1'], similarity(stats[i], center)
        centres = top(count, groups)
        plans[i] = merge(
            params[f'layer_{i}']['moe'], stats[i], nearest(alike, centres), count,
            router_init=router_init, align_to='reference' if align else 'none', seed=seed,
            notes={'similarity': alike, 'centres': centres},
        )
    return plans
