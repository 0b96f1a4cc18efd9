"""HC-SMoE: hierarchical clustering of experts by their mean outputs, and a merge of each cluster.

Source: Chen et al., "Retraining-Free Merging of Sparse MoE via Hierarchical Clustering", ICML 2025,
and its released code. As there: every expert is represented by its mean output over all calibration
tokens, whether routed to it or not; Euclidean distance; average linkage; weights are usage; no
alignment of hidden units; the router keeps all its rows ('alias').

Deviations: a cluster without traffic is a plain mean; each layer keeps the number of experts asked
for, so the paper's variable number per layer is left out. `by='routed'` is not in the paper: the
mean output over the tokens routed to an expert, which needs no dense pass; an expert without any
then counts as zero output.
"""

from typing import Literal

import numpy as np
from scipy.spatial.distance import pdist, squareform

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.experts.merge import merge
from prune.experts.routers import ROUTER_NEEDS, RouterInit
from prune.inputs.method import Cost, Counts, Method
from prune.inputs.statistics import Layers, LayerStats
from prune.plans.layer import LayerPlan
from prune.similarity.linkage import Linkage, agglomerate


def plan(
    stats: Layers,
    params: Params,
    cfg: Config,
    counts: Counts,
    *,
    by: Literal['dense', 'routed'] = 'dense',
    linkage: Linkage = 'average',
    router_init: RouterInit = 'alias',
    align: Literal['reference', 'first', 'none'] = 'none',
    seed: int = 0,
) -> dict[int, LayerPlan]:
    """One plan per MoE layer; the note `distance` is that of the mean outputs, [E, E].

    by: mean outputs over all tokens ('dense') or over those routed to the expert ('routed').
    linkage: the distance of two clusters: that of their members on average, at least ('single') or
      at most ('complete'), or the growth of the variance ('ward').
    router_init: `prune.experts.routers`; 'alias' is the paper's.
    align: hidden units to the most used expert of the cluster ('reference') or to expert 0 of the
      layer ('first') before averaging; the paper does not.
    seed: of a random router.
    """
    plans = {}
    for i, groups in counts.items():
        distance = squareform(pdist(MEAN[by](stats[i])))
        plans[i] = merge(
            params[f'layer_{i}']['moe'], stats[i], agglomerate(distance, groups, linkage),
            stats[i]['count'], router_init=router_init, align_to=align, seed=seed,
            notes={'distance': distance},
        )
    return plans


def _dense(stats: LayerStats) -> np.ndarray:
    return stats['dense_output_sum'] / float(stats['tokens'])


def _routed(stats: LayerStats) -> np.ndarray:
    return stats['output_sum'] / np.maximum(stats['moments'][0, 0], 1)[:, None]


# Mean outputs [E, D].
MEAN = {'dense': _dense, 'routed': _routed}


METHOD = Method(
    name='hc_smoe',
    title='HC-SMoE',
    doc=__doc__,
    paper='HC-SMoE, ICML 2025',
    kind='merge',
    cost=Cost.DENSE,
    needs=('tokens', 'count'),
    option_needs={'router_init': ROUTER_NEEDS,
                  'by': {'dense': ('dense_output_sum',), 'routed': ('output_sum', 'moments')}},
    plan=plan,
    place=240,
)
