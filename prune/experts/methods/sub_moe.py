"""Sub-MoE: k-means of experts by the cosine of their outputs, and a merge in a shared subspace.

Source: Li et al., "Sub-MoE: Efficient Mixture-of-Expert LLMs Compression via Subspace Expert
Merging", AAAI 2026 (arXiv 2506.23266). The matrices of a group side by side are decomposed,
[W_1 ... W_n] = U S [V_1 ... V_n]; the V are averaged by usage, and the merged matrix is U S V.

U S V_e is W_e, so at full rank U S (sum_e a_e V_e) = sum_e a_e W_e: the merge is the weighted mean,
and is planned as such. `rank` keeps only the first singular directions, which is a projection of
that mean on the columns of U (`prune.similarity.subspace`). Weights here are [in, out], so U spans
directions of a matrix's input.

The paper leaves room. k-means works on points whose squared distance is 2 - 2 cos, cos being the
mean cosine of two experts' outputs over tokens: for 'dense' that is k-means on all outputs scaled
to length one. Router rows stay and share the merged expert ('alias'). A group without traffic is a
plain mean. A lone expert is copied whatever the rank.
"""

import dataclasses
from typing import Literal

import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.experts.merge import merge
from prune.experts.routers import ROUTER_NEEDS, RouterInit
from prune.inputs.method import Cost, Counts, Method
from prune.inputs.statistics import Layers, LayerStats
from prune.plans.layer import LayerPlan
from prune.similarity.cluster import embed, kmeans, mean_cosine


def plan(
    stats: Layers,
    params: Params,
    cfg: Config,
    counts: Counts,
    *,
    by: Literal['dense', 'routed'] = 'dense',
    rank: int = 0,
    router_init: RouterInit = 'alias',
    align: Literal['reference', 'first', 'none'] = 'none',
    seed: int = 0,
) -> dict[int, LayerPlan]:
    """One plan per MoE layer; the notes have the `cosine` [E, E] of outputs and k-means' `inertia`.

    by: cosine of outputs over all tokens ('dense'), or over the tokens that chose both experts
      ('routed'), where pairs that never meet count as unlike (0).
    rank: singular directions kept of every merged matrix; 0 keeps all.
    router_init: `prune.experts.routers`.
    align: as for `hc_smoe`.
    seed: of k-means and of a random router.
    """
    plans = {}
    for i, groups in counts.items():
        alike = COSINE[by](stats[i])
        labels, inertia = kmeans(embed(alike), groups, seed=seed)
        merged = merge(
            params[f'layer_{i}']['moe'], stats[i], labels, stats[i]['count'],
            router_init=router_init, align_to=align, seed=seed,
            notes={'cosine': alike, 'inertia': inertia},
        )
        plans[i] = dataclasses.replace(merged, rank=rank) if rank else merged
    return plans


def _dense(stats: LayerStats) -> np.ndarray:
    return mean_cosine(stats['dense_cosine'], stats['tokens'])


def _routed(stats: LayerStats) -> np.ndarray:
    return mean_cosine(stats['output_cosine'], stats['together'])


COSINE = {'dense': _dense, 'routed': _routed}


METHOD = Method(
    name='sub_moe',
    title='Sub-MoE',
    doc=__doc__,
    paper='Sub-MoE, AAAI 2026',
    kind='merge',
    cost=Cost.DENSE,
    needs=('tokens', 'count'),
    option_needs={'router_init': ROUTER_NEEDS, 'by': {
        'dense': ('dense_cosine',), 'routed': ('output_cosine', 'together')}},
    plan=plan,
    place=260,
)
