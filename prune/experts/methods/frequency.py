"""One-shot frequency pruning: keep the experts that are the router's first choice most often.

Source: the baseline of UNCURL (ENLSP-IV 2024, section on baselines); the idea is older, e.g. Kim et
al. 2021, "Scalable and Efficient MoE Training for Multitask Multilingual Models". Ties go to
the lower index.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_jax.config import Config

PAPER = 'baseline in UNCURL, ENLSP-IV 2024'
KIND = 'drop'
NEEDS = ('count_top1',)
COST = 'one pass'


def scores(
    stats: Mapping[int, Mapping[str, np.ndarray]], params: Mapping[str, Any], cfg: Config
) -> dict[int, np.ndarray]:
    """Tokens whose first choice an expert is, [E] per MoE layer."""
    return {i: stats[i]['count_top1'].astype(np.float64) for i in cfg.moe_layers}
