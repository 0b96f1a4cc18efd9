"""Frequency merging: the most used experts are centers, every other one joins the most similar.

Source: the baseline of UNCURL (ENLSP-IV 2024, table 3). It differs from `uncurl` in the partition
alone: same similarity, alignment, weights and router. Ties go to the lower index.
"""



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
    center: Center = 'none',
    router_init: RouterInit = 'random',
    align: bool = True,
    seed: int = 0,
) -> dict[int, LayerPlan]:
    """One plan per MoE layer; the options mean what they mean for `uncurl`."""
    plans = {}
    for i, groups in counts.items():
        count, alike = stats[i]['count_top1'], similarity(stats[i], center)
        centers = top(count, groups)
        plans[i] = merge(
            params[f'layer_{i}']['moe'], stats[i], nearest(alike, centers), count,
            router_init=router_init, align_to='reference' if align else 'none', seed=seed,
            notes={'similarity': alike, 'centers': centers},
        )
    return plans


METHOD = Method(
    name='frequency_merge',
    title='frequency merging',
    doc=__doc__,
    paper='baseline in UNCURL, ENLSP-IV 2024',
    kind='merge',
    cost=Cost.PASS,
    needs=('tokens', 'count_top1', 'logit_gram'),
    option_needs={'center': CENTER_NEEDS, 'router_init': ROUTER_NEEDS},
    plan=plan,
    place=220,
)
