"""UNCURL: cluster experts by their router logits on task data, and merge each cluster.

Source: "Revisiting SMoE Language Models by Evaluating Inefficiencies with Task Specific Expert
Pruning", NeurIPS 2024 workshop ENLSP-IV, algorithm 1. The defaults follow the paper: cosine of raw
logits, (1 + cos) / 2, spectral clustering, alignment to the most used expert of the cluster, mean
weighted by top-1 counts, random router that must then be trained.

Where the paper leaves room: the map to [0, 1] is applied once; the Laplacian is the symmetric
normalized one with row-normalized eigenvectors (Ng, Jordan and Weiss, which it cites); k-means
keeps the best of 10 seeded restarts; a cluster without traffic is a plain mean; a layer that keeps
all its experts keeps its router. The paper suggests, and does not evaluate, keeping the first layer
greedy, since its logits show no clusters: `first_layer='topk'` of `prune.plan`.
"""



from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.experts.merge import merge
from prune.experts.routers import ROUTER_NEEDS, RouterInit
from prune.inputs.method import Cost, Counts, Method
from prune.inputs.statistics import Layers
from prune.plans.layer import LayerPlan
from prune.similarity.cluster import CENTER_NEEDS, Center, similarity, spectral


def plan(
    stats: Layers,
    params: Params,
    cfg: Config,
    counts: Counts,
    *,
    center: Center = 'none',
    router_init: RouterInit = 'random',
    align: bool = True,
    seed: int = 0,
) -> dict[int, LayerPlan]:
    """One plan per MoE layer.

    center: how logits are centered before the cosine (`prune.similarity.cluster.similarity`).
    router_init: `prune.experts.routers`; 'random' is the paper's, the others give a usable model at
    once.
    align: permute hidden units to match the reference expert before averaging.
    seed: of k-means and of a random router.
    """
    plans = {}
    for i, groups in counts.items():
        layer, seen = params[f'layer_{i}']['moe'], stats[i]
        count = seen['count_top1']
        alike = similarity(seen, center)
        clusters = spectral(alike, groups, seed=seed)
        notes = {'similarity': alike, 'inertia': clusters.inertia, 'embedding': clusters.embedding}
        plans[i] = merge(
            layer, seen, clusters.labels, count, router_init=router_init,
            align_to='reference' if align else 'none', seed=seed, notes=notes,
        )
    return plans


METHOD = Method(
    name='uncurl',
    title='UNCURL',
    doc=__doc__,
    paper='UNCURL, ENLSP-IV 2024',
    kind='merge',
    cost=Cost.PASS,
    needs=('tokens', 'count_top1', 'logit_gram'),
    option_needs={'center': CENTER_NEEDS, 'router_init': ROUTER_NEEDS},
    plan=plan,
    place=210,
)
