"""Genetic search: evolve sets of experts towards the least change of the layer's output.

Source: the inter-expert pruning of MoE-I^2 (Yang et al., EMNLP Findings 2024): a genetic search in
each layer with the layer's reconstruction error as fitness, crossover on the union of two parents'
sets, and mutation by swaps. For layers whose sets are too many to try (`naee`).

Deviations: the error is the mean square instead of ||Y - Y'||_F, which ranks alike, from inner
products of expert outputs (`prune.subsets.error`). Experts that both parents keep stay in the
child, only the rest is drawn from the union. One seed set is the ranking by summed gates, and no
set that was found is lost, so the result is never worse than that ranking. The paper's budgets per
layer and its choice of combinations over blocks of layers are not part of the search; budgets are
`prune.budget.allocate`. Equal errors go to the first set in lexicographic order.
"""


import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.inputs.method import Cost, Counts, Method
from prune.inputs.statistics import Layers, LayerStats
from prune.subsets import error
from prune.subsets import search as subsets
from prune.subsets.error import Sample


def choose(
    stats: Layers,
    params: Params,
    cfg: Config,
    counts: Counts,
    *,
    population: int = 64,
    generations: int = 50,
    seed: int = 0,
) -> dict[int, np.ndarray]:
    """Ids of the best set found in each MoE layer, ascending [G].

    population: sets that live from one generation to the next, and children of each.
    generations: rounds of children; population * (generations + 1) errors at most.
    seed: of all random draws; each layer starts from it anew.
    """
    if population < 1:
        raise ValueError(f'genetic: population={population}: at least 1 set')
    chosen = {}
    for i, count in counts.items():
        sample = error.sample_of(stats[i], params[f'layer_{i}']['moe'], cfg)
        order = subsets.ranked(share(sample), cfg.groups)
        chosen[i] = search(sample, cfg, gate_mass(stats[i]), order, count, population=population,
                           generations=generations, seed=seed)
    return chosen


def search(
    sample: Sample, cfg: Config, mass: np.ndarray, order: np.ndarray, count: int, *,
    population: int, generations: int, seed: int,
) -> np.ndarray:
    """Ids [G] of the best set of `count` experts found, starting from the highest mass [E].

    Sets are drawn among the experts in `order` [E], so that their numbers decide nothing.
    """
    experts = len(mass)
    if count == experts:
        return np.arange(experts)
    place = np.argsort(order)
    seeds = subsets.highest(mass[order][None], count, cfg.groups)
    sets = subsets.evolve(
        lambda masks: error.mask_errors(sample, cfg, masks[:, place]), seeds,
        groups=cfg.groups, population=population, generations=generations,
        rng=np.random.default_rng(seed),
    )
    limit = sets.errors[0] + error.ROUNDING * sample.scale
    best = sets.masks[sets.errors <= limit][:, place]
    return np.array(min(np.flatnonzero(mask).tolist() for mask in best))


def gate_mass(seen: LayerStats) -> np.ndarray:
    """Sum of each expert's gates over the reservoir, [E] float64."""
    return np.asarray(seen['sample_gates'], np.float64).sum(axis=0)


def share(sample: Sample) -> np.ndarray:
    """Mean of each expert's softmax over the reservoir, [E] float64: an order without ties."""
    z = np.asarray(sample.router.logits, np.float64)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    return (p / p.sum(axis=1, keepdims=True)).mean(axis=0)


METHOD = Method(
    name='genetic',
    title='genetic search',
    doc=__doc__,
    paper='MoE-I2, EMNLP Findings 2024',
    kind='drop',
    cost=Cost.RESERVOIR,
    needs=(*error.NEEDS, 'sample_gates'),
    choose=choose,
    place=170,
)
