"""Keep experts drawn at random: the floor that every criterion has to beat.

No paper; no statistics.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_jax.config import Config

PAPER = 'baseline'
KIND = 'drop'
NEEDS = ()
COST = 'weights only'


def choose(
    stats: Mapping[int, Mapping[str, np.ndarray]],
    params: Mapping[str, Any],
    cfg: Config,
    counts: Mapping[int, int],
    *,
    seed: int = 0,
) -> dict[int, np.ndarray]:
    """Ids to keep of each MoE layer, ascending; `seed` and the layer index choose the draw."""
    return {
        i: _draw(seed, i, cfg.experts[i], kept, cfg.groups)
        for i, kept in counts.items()
    }


def _draw(seed: int, layer: int, experts: int, kept: int, groups: int) -> np.ndarray:
    """The same number of each router group."""
    rng, each = np.random.default_rng([seed, layer]), experts // groups
    return np.concatenate([
        first + np.sort(rng.choice(each, kept // groups, replace=False))
        for first in range(0, experts, each)
    ])
