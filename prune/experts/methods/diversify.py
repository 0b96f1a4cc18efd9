"""Diversifying the expert knowledge: experts that say the same are grouped, and each group merged.

Source: Zhang et al., "Diversifying the Expert Knowledge for Task-Agnostic Pruning in Sparse
Mixture-of-Experts", arXiv 2407.09590. Experts are alike by the linear centered kernel alignment
(CKA; Kornblith et al. 2019) of their outputs, or by their weights, which may be aligned first.
Members of a group are averaged, after alignment, and so are their router rows.

The paper leaves room. Groups are found by average linkage of 1 - similarity; the average is plain;
hidden units are aligned to the first expert of the group; outputs are those on a sample of all
tokens, routed or not.
"""

from typing import Any, Literal

import numpy as np

from moe_jax.base.tree import Params, host
from moe_jax.config import Config
from prune.experts.merge import merge
from prune.experts.routers import ROUTER_NEEDS, RouterInit
from prune.inputs.method import Cost, Counts, Method
from prune.inputs.statistics import Layers, LayerStats
from prune.plans.layer import LayerPlan
from prune.similarity.align import permutations, permute
from prune.similarity.cluster import cosine
from prune.similarity.linkage import Linkage, agglomerate

BLOCK = 1 << 24  # numbers of a block of kernels or weights, 64 MB in float32


def plan(
    stats: Layers,
    params: Params,
    cfg: Config,
    counts: Counts,
    *,
    by: Literal['outputs', 'weights', 'aligned_weights'] = 'outputs',
    linkage: Linkage = 'average',
    router_init: RouterInit = 'mean',
    align: Literal['reference', 'first', 'none'] = 'reference',
    seed: int = 0,
) -> dict[int, LayerPlan]:
    """One plan per MoE layer; the note `similarity` [E, E] is what the groups were made from.

    by: linear CKA of outputs, or cosine of all weights as they are ('weights', which needs no
      statistics) or with hidden units aligned to expert 0 ('aligned_weights').
    linkage: as for `hc_smoe`.
    router_init: `prune.experts.routers`; 'mean' is the paper's.
    align: hidden units to the first expert of the group ('reference') or of the layer ('first')
      before averaging.
    seed: of a random router.
    """
    plans = {}
    for i, groups in counts.items():
        layer, seen = params[f'layer_{i}']['moe'], stats.get(i, {})
        alike = SIMILARITY[by](layer['experts'], seen)
        plans[i] = merge(
            layer, seen, agglomerate(1 - alike, groups, linkage), np.ones(len(alike), int),
            router_init=router_init, align_to=align, seed=seed, notes={'similarity': alike},
        )
    return plans


def cka(outputs: np.ndarray) -> np.ndarray:
    """Linear CKA [E, E] of outputs [S, E, D]: the cosine of the experts' centered kernels.

    |X_i^T X_j|^2 / (|X_i^T X_i| |X_j^T X_j|), Frobenius norms, each X [S, D] without its mean over
    tokens. An expert whose output is the same for all tokens has 0 to every other one. Kernels
    X X^T are float32 and never whole, their products float64.
    """
    tokens, experts = outputs.shape[:2]
    centered = np.stack([_center(outputs[:, e]) for e in range(experts)])
    step = max(1, BLOCK // (experts * tokens))
    gram = np.zeros((experts, experts))
    for start in range(0, tokens, step):
        kernels = centered[:, start:start + step] @ centered.transpose(0, 2, 1)
        rows = kernels.reshape(experts, -1).astype(np.float64)
        gram += rows @ rows.T
    # Centring leaves rounding of constant outputs, about 1e-14 of their square.
    return cosine(gram, 1e-10 * float(np.einsum('sed,sed->e', outputs, outputs).max()))


def weight_cosine(experts: Params) -> np.ndarray:
    """Cosine [E, E] of all weights of two experts, each as one vector."""
    gram: Any = 0.0
    for leaf in experts.values():
        step = max(1, BLOCK * leaf.shape[1] // leaf.size)
        for start in range(0, leaf.shape[1], step):
            part = host(leaf, (slice(None), slice(start, start + step)))
            rows = part.reshape(len(part), -1).astype(np.float32).astype(np.float64)
            gram = gram + rows @ rows.T
    return cosine(gram)


def _center(outputs: np.ndarray) -> np.ndarray:
    """Outputs [S, D] without their mean, float32."""
    outputs = outputs.astype(np.float64)
    return (outputs - outputs.mean(axis=0)).astype(np.float32)


def _outputs(experts: Params, stats: LayerStats) -> np.ndarray:
    return cka(stats['sample_output'])


def _weights(experts: Params, stats: LayerStats) -> np.ndarray:
    return weight_cosine(experts)


def _aligned(experts: Params, stats: LayerStats) -> np.ndarray:
    count = experts['up'].shape[0]
    return weight_cosine(permute(experts, permutations(experts, np.zeros(count, int))))


SIMILARITY = {'outputs': _outputs, 'weights': _weights, 'aligned_weights': _aligned}


METHOD = Method(
    name='diversify',
    title='diversifying',
    doc=__doc__,
    paper='Diversifying the Expert Knowledge, 2024',
    kind='merge',
    cost=Cost.RESERVOIR,
    option_needs={'router_init': ROUTER_NEEDS, 'by': {'outputs': ('sample_output',)}},
    plan=plan,
    place=270,
)
