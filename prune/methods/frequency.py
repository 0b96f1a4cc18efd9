"""One-shot frequency pruning: keep the experts that are the router's first choice most often.

Source: the baseline of UNCURL (ENLSP-IV 2024, section on baselines); the idea is older, e.g. Kim et
al. 2021, "Scalable and Efficient MoE Training for Multitask Multilingual Models". Router rows of
kept experts are copied. Ties go to the lower index. Of a router with groups, every group keeps the
same number.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_jax.config import Config
from prune.cluster import top
from prune.merge import keep
from prune.plan import LayerPlan

PAPER = 'baseline in UNCURL, ENLSP-IV 2024'
KIND = 'prune'
NEEDS = ('count_top1',)


def plan(
    stats: Mapping[int, Mapping[str, np.ndarray]],
    params: Mapping[str, Any],
    cfg: Config,
    counts: Mapping[int, int],
) -> dict[int, LayerPlan]:
    """One plan per MoE layer; the note `margin` is the least kept count less the greatest lost
    (below 0 only where router groups force it)."""
    plans = {}
    for i, kept in counts.items():
        count = stats[i]['count_top1']
        notes = {'count': count, 'zero_traffic': np.flatnonzero(count == 0)}
        ids = top(count, kept, cfg.groups)
        if kept < len(count):
            lost = np.delete(count, ids)
            notes['margin'] = int(count[ids].min() - lost.max())
        plans[i] = keep(ids, len(count), notes)
    return plans
