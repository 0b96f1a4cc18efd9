"""M-SMoE: dominant experts chosen across all layers by usage; the others join the most similar.

Source: Li et al., "Merge, Then Compress: Demystify Efficient SMoE with Hints from Its Routing
Policy", ICLR 2024, section 3.1, and its released code. As there: experts are aligned to expert 0 of
their layer, similarity is the cosine of router logits, weights are usage, and the router keeps all
its rows ('alias').

Deviations: dominants are counted exactly (the code compares usage with a threshold, so ties drop
groups and a small budget fails); each layer keeps at least `topk`
(with `clamp`, the fewest asked for); weights have no epsilon; groups
have no maximum size. Distillation and the compression stage are not part of a plan.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.experts.merge import merge
from prune.experts.routers import ROUTER_NEEDS, RouterInit
from prune.inputs.method import Cost, Counts, Method
from prune.inputs.statistics import Layers
from prune.plans.layer import LayerPlan
from prune.similarity.cluster import CENTER_NEEDS, Center, nearest, similarity
from prune.subsets.top import top


def plan(
    stats: Layers,
    params: Params,
    cfg: Config,
    counts: Counts,
    *,
    selection: Literal['global', 'per_layer'] = 'global',
    center: Center = 'none',
    router_init: RouterInit = 'alias',
    align: Literal['first', 'reference', 'none'] = 'first',
    seed: int = 0,
) -> dict[int, LayerPlan]:
    """One plan per MoE layer.

    selection: 'global' spends the sum of `counts` where usage is high, so layers differ, and leaves
      layers alone whose count is all they have; 'per_layer' gives each layer its count.
    router_init: `prune.experts.routers`; 'alias' is the paper's.
    align: to expert 0 ('first'), or to the most used expert of each group ('reference').
    center, seed: as for `uncurl`.
    """
    usage = {i: _usage(stats[i]['count']) for i in counts}
    counts = SELECT[selection](usage, counts, min(cfg.topk, *counts.values()))
    plans = {}
    for i, groups in counts.items():
        alike, dominants = similarity(stats[i], center), top(usage[i], groups)
        plans[i] = merge(
            params[f'layer_{i}']['moe'], stats[i], nearest(alike, dominants), stats[i]['count'],
            router_init=router_init, align_to=align, seed=seed,
            notes={'similarity': alike, 'centers': dominants},
        )
    return plans


def spend(
    usage: Mapping[int, np.ndarray], counts: Mapping[int, int], floor: int
) -> dict[int, int]:
    """Share the sum of `counts` among layers by usage [E], at least `floor` experts in each.

    The `floor` most used experts of every layer come first, then the most used of all layers; ties
    go to the lower layer, then the lower index.
    """
    open_layers = [i for i in counts if counts[i] < len(usage[i])]
    budget = sum(counts[i] for i in open_layers) - floor * len(open_layers)
    rest = [(-u, i) for i in open_layers for u in -np.sort(-usage[i])[floor:]]
    owners = [i for _, i in sorted(rest)[:budget]]
    return {i: floor + owners.count(i) if i in open_layers else n for i, n in counts.items()}


def _as_asked(
    usage: Mapping[int, np.ndarray], counts: Mapping[int, int], floor: int
) -> dict[int, int]:
    return dict(counts)


SELECT = {'global': spend, 'per_layer': _as_asked}


def _usage(count: np.ndarray) -> np.ndarray:
    """Share of each expert in its layer's traffic; zeros where there was none."""
    return count / max(int(count.sum()), 1)


METHOD = Method(
    name='m_smoe',
    title='M-SMoE',
    doc=__doc__,
    paper='M-SMoE, ICLR 2024',
    kind='merge',
    cost=Cost.PASS,
    needs=('tokens', 'count', 'logit_gram'),
    option_needs={'center': CENTER_NEEDS, 'router_init': ROUTER_NEEDS},
    plan=plan,
    place=230,
)
