"""STUN, its first stage: experts whose router rows are close are clustered, and one of each stays.

Source: Lee et al., "STUN: Structured-Then-Unstructured Pruning for Scalable MoE Pruning", ACL 2025,
and its released code. The distance of two experts is that of their router rows, over the
norm of the layer's whole router, less how often tokens choose both (`coactivation`). Clusters are
joined nearest first while all their members are within tau of each other, one tau for all layers,
so that layers end with different numbers of experts. Of each cluster the expert whose weights are
nearest to the cluster's mean stays unchanged, with its router row (of two, which are equally near,
the one with the larger weights). A layer with few clusters left
(`average_below`) gets the mean of each cluster instead, router rows too.

Deviations: tau is not searched by bisection but read off the sorted distances at which clusters
join, which reaches the sum of the counts exactly, also among ties (the lower layer joins first);
the code joins by the nearest pair of members and compares only some of the others with tau. A layer
keeps at least `topk` experts (fewer only where that was asked for), and all of them where its count
says so. In the paper unstructured pruning of what is left follows.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.spatial.distance import pdist, squareform

from moe_jax.base.tree import Params, host
from moe_jax.config import Config
from prune.experts.keep import keep
from prune.experts.merge import merge
from prune.inputs.method import Cost, Counts, Method
from prune.inputs.router import router_leaves
from prune.inputs.statistics import Layers, LayerStats
from prune.plans.layer import LayerPlan
from prune.similarity.linkage import cut, join


def plan(
    stats: Layers,
    params: Params,
    cfg: Config,
    counts: Counts,
    *,
    coactivation: bool = False,
    lambda1: float = 1.0,
    lambda2: float = 1.0,
    average_below: int = 3,
) -> dict[int, LayerPlan]:
    """One plan per MoE layer, as many experts in all as the sum of `counts`; notes have `labels`
    [E] and the layer's `tau`, its largest distance within a cluster.

    coactivation: whether experts that are often chosen together count as near, which takes
      statistics.
    lambda1, lambda2: weights of router distance and coactivation.
    average_below: a layer with this many clusters or fewer is averaged (paper 3, code 2).
    """
    apart = {i: distances(params[f'layer_{i}']['moe'], lambda1) for i in counts}
    if coactivation:
        apart = {i: d - lambda2 * together(stats[i]) for i, d in apart.items()}
    plans = {}
    for i, (labels, tau) in clusters(apart, counts, min(cfg.topk, *counts.values())).items():
        moe, notes = params[f'layer_{i}']['moe'], {'labels': labels, 'tau': tau}
        if labels.max() < average_below:
            plans[i] = merge(moe, {}, labels, np.ones(len(labels), int), router_init='mean',
                             align_to='none', seed=0, notes=notes)
        else:
            ids = [representative(moe['experts'], np.flatnonzero(labels == g))
                   for g in range(labels.max() + 1)]
            plans[i] = keep(np.sort(ids), len(labels), notes)
    return plans


def distances(moe: Params, weight: float) -> np.ndarray:
    """Distance [E, E] of router rows over the norm of the whole router, times `weight`."""
    rows = np.asarray(router_leaves(moe, 'stun')['kernel']).astype(np.float64)
    return weight * squareform(pdist(rows)) / max(float(np.linalg.norm(rows)), 1e-300)


def together(stats: LayerStats) -> np.ndarray:
    """How often two experts are chosen together, 1 on the average over pairs [E, E]; or all 0."""
    pairs = stats['together'] * (1.0 - np.eye(len(stats['together'])))
    return pairs * (pairs.size - len(pairs)) / max(float(pairs.sum()), 1.0)


def clusters(
    distance: Mapping[int, np.ndarray], counts: Mapping[int, int], floor: int
) -> dict[int, tuple[np.ndarray, float]]:
    """Labels [E] and largest distance joined of every layer, sum(counts) clusters in all.

    Complete linkage: two clusters join at the largest distance of their members. A layer keeps at
    least `floor` clusters, and all where its count does.
    """
    trees = {i: join(d, 'complete') for i, d in distance.items()}
    joins = sorted(
        (height, i) for i, tree in trees.items() if counts[i] <= len(tree.heights)
        for height in tree.heights[:len(tree.heights) + 1 - floor]
    )
    excess = sum(len(d) - counts[i] for i, d in distance.items())
    made = [i for _, i in joins[:excess]]
    partitions = {}
    for i, tree in trees.items():
        n = made.count(i)
        partitions[i] = cut(tree, len(distance[i]) - n), float(tree.heights[n - 1]) if n else 0.0
    return partitions


def representative(experts: Params, ids: np.ndarray) -> int:
    """The expert of `ids` whose weights are nearest to the mean of theirs; of two the larger."""
    away, norm = np.zeros((2, len(ids)))
    for leaf in experts.values():
        weights = [host(leaf, e).astype(np.float64) for e in ids]
        middle: Any = sum(weights) / len(ids)
        away += [((w - middle) ** 2).sum() for w in weights]
        norm += [(w ** 2).sum() for w in weights]
    # Two experts are equally far from their mean, and equal ones not at all, up to rounding.
    near = np.flatnonzero(away <= away.min() * (1 + 1e-9) + 1e-20 * norm.sum())
    return int(ids[near[norm[near] >= norm[near].max() * (1 - 1e-9)][0]])


METHOD = Method(
    name='stun',
    title='STUN',
    doc=__doc__,
    paper='STUN, ACL 2025',
    kind='drop',
    cost=Cost.WEIGHTS,
    option_needs={'coactivation': {True: ('together',)}},
    plan=plan,
    place=190,
)
