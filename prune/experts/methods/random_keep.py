"""Keep experts drawn at random: the floor that every criterion has to beat.

No paper; no statistics.
"""


import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.inputs.method import Cost, Counts, Method
from prune.inputs.statistics import Layers


def choose(
    stats: Layers,
    params: Params,
    cfg: Config,
    counts: Counts,
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


METHOD = Method(
    name='random',
    title='random',
    doc=__doc__,
    paper='baseline',
    kind='drop',
    cost=Cost.WEIGHTS,
    choose=choose,
    place=200,
)
