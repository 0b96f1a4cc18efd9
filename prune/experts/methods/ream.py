"""REAM: the most salient experts each take in a few of the most similar others, and are merged.

Source: Jha et al., "REAM: Merging Improves Pruning of Experts in LLMs", arXiv 2604.04356, and its
released code. Saliency is REAP's, the mean over an expert's tokens of gate times output norm. The G
most salient experts are centroids. Visited from the most salient on, each takes the `size` - 1
nearest experts that are left, so most groups stay single and a few grow large. The distance is 1 -
((1 + cos_o) / 2 + s) / 2 with cos_o the cosine of the mean gated outputs and s = 1 - D / max D, D =
sqrt(2 - 2 cos_z) that of the normalized logits over tokens. A group is the saliency-weighted mean
of its members, aligned to its centroid, whose router row it keeps.

Deviations: all layers are planned from the intact model (the paper goes layer by layer);
alignment is by weights alone (the code adds hidden activations and works on a projection of both);
means are over tokens (the code's are means of batch means, and its saliency takes gates as they
were before renormalization); an expert without saliency has weight 0 beside others (the code puts a
number in its place).
"""

from typing import Literal

import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.experts.merge import merge
from prune.experts.routers import ROUTER_NEEDS, RouterInit
from prune.inputs.method import Cost, Counts, Method
from prune.inputs.statistics import Layers, LayerStats
from prune.plans.layer import LayerPlan
from prune.similarity.cluster import cosine, similarity
from prune.subsets.top import top


def plan(
    stats: Layers,
    params: Params,
    cfg: Config,
    counts: Counts,
    *,
    size: int = 16,
    router_init: RouterInit = 'reference',
    align: Literal['reference', 'first', 'none'] = 'reference',
    seed: int = 0,
) -> dict[int, LayerPlan]:
    """One plan per MoE layer; its notes have `saliency` [E], `centers` [G] and `distance` [E, E].

    size: the most experts in a group, centroid included.
    router_init: `prune.experts.routers`; 'reference', the centroid's row, is the paper's.
    align: hidden units to the centroid ('reference') or to expert 0 of the layer ('first') before
      averaging.
    seed: of a random router.

    Raises ValueError where groups of `size` cannot hold all experts of a layer.
    """
    plans = {}
    for i, groups in counts.items():
        if groups * size < cfg.experts[i]:
            raise ValueError(
                f'layer {i}: {groups} groups of at most {size} cannot hold its {cfg.experts[i]} '
                f'experts; keep more experts, or size={-(-cfg.experts[i] // groups)} or more'
            )
        saliency, apart = saliencies(stats[i]), distances(stats[i])
        centers = top(saliency, groups)
        plans[i] = merge(
            params[f'layer_{i}']['moe'], stats[i], gather(apart, saliency, centers, size), saliency,
            router_init=router_init, align_to=align, seed=seed,
            notes={'saliency': saliency, 'centers': centers, 'distance': apart},
        )
    return plans


def saliencies(stats: LayerStats) -> np.ndarray:
    """Mean of gate times output norm over an expert's tokens [E]; 0 without any."""
    moments = stats['moments']
    return moments[1, 1] / np.maximum(moments[0, 0], 1)


def distances(stats: LayerStats) -> np.ndarray:
    """Distance [E, E] in [0, 1] of gated outputs and router logits, zero on the diagonal."""
    total = stats['gated_output_sum']
    outputs = (1 + cosine(total @ total.T)) / 2
    apart = 2 * np.sqrt(1 - similarity(stats))
    most = apart.max()
    gates = 1 - apart / most if most > 0 else np.ones_like(apart)
    return 1 - (outputs + gates) / 2


def gather(distance: np.ndarray, saliency: np.ndarray, centers: np.ndarray, size: int
           ) -> np.ndarray:
    """Labels [E], positions in `centers` [G]: each, the most salient first, takes its nearest."""
    labels = np.full(len(distance), -1)
    labels[centers] = np.arange(len(centers))
    for g in np.argsort(-saliency[centers], kind='stable'):
        left = np.flatnonzero(labels < 0)
        order = np.argsort(distance[centers[g], left], kind='stable')
        labels[left[order[:size - 1]]] = g
    return labels


METHOD = Method(
    name='ream',
    title='REAM',
    doc=__doc__,
    paper='REAM, 2026',
    kind='merge',
    cost=Cost.PASS,
    needs=('moments', 'gated_output_sum', 'logit_gram'),
    option_needs={'router_init': ROUTER_NEEDS},
    plan=plan,
    place=250,
)
