"""Greedy elimination: drop one expert after the other, each time the one that is missed the least.

Source: the objective of NAEE (Lu et al., ACL 2024), whose search over all sets ends at about 16
experts, followed greedily from all experts down; a design of this library. Where an expert is
dropped, the errors of all further candidates take the new choices of the tokens into account, so
that of two experts which can stand in for each other only one goes. With router groups, one expert
of each group goes in turn. Ties drop the highest index.
"""


import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.inputs.method import Cost, Counts, Method
from prune.inputs.statistics import Layers
from prune.subsets import error
from prune.subsets.error import Sample


def choose(
    stats: Layers, params: Params, cfg: Config, counts: Counts
) -> dict[int, np.ndarray]:
    """Ids of the experts that are left in each MoE layer, ascending [G].

    E - G rounds of about K subsets each (`prune.subsets.error.errors_without`).
    """
    chosen = {}
    for i, count in counts.items():
        sample = error.sample_of(stats[i], params[f'layer_{i}']['moe'], cfg)
        chosen[i] = eliminate(sample, cfg, count)
    return chosen


def eliminate(sample: Sample, cfg: Config, count: int) -> np.ndarray:
    """The `count` experts of a layer that greedy elimination leaves, ascending ids."""
    experts = sample.cross.shape[1]
    kept = np.arange(experts)
    while len(kept) > count:
        errors = error.errors_without(sample, cfg, kept)
        group = kept * cfg.groups // experts
        left = np.bincount(group)[group]
        errors = np.where(left == left.max(), errors, np.inf)
        last = len(kept) - 1 - error.least(errors[::-1], sample.scale)
        kept = np.delete(kept, last)
    return kept


METHOD = Method(
    name='greedy',
    title='greedy elimination',
    doc=__doc__,
    paper='greedy search of the objective of NAEE, ACL 2024',
    kind='drop',
    cost=Cost.RESERVOIR,
    needs=error.NEEDS,
    choose=choose,
    place=160,
)
