"""Plans for fewer experts: statistics in, a plan out, and the plan carried out on parameters.

    plan = prune.plan('uncurl', stats, params, cfg, experts=8)
    small, small_cfg = prune.apply(params, cfg, plan)

`sparsify` plans zeros inside experts in the same way, and `Foreign` does the same to models of
others, described in a few lines.
"""

from prune.catalog.registry import (
    check_options,
    check_weight_options,
    methods,
    observe_options,
    options,
    weight_methods,
    weight_options,
)
from prune.curves.safe_sparsity import safe_sparsity
from prune.curves.safety import Safety
from prune.experts.evolution import Evolved, evolve
from prune.experts.layerwise import plan_layerwise
from prune.experts.planner import plan
from prune.experts.protect import super_experts
from prune.experts.ranking import scores
from prune.experts.select import select as select_experts
from prune.experts.sensitivity import sensitivity
from prune.foreign.foreign import Foreign
from prune.foreign.leaves import Leaf
from prune.plans.layer import LayerPlan
from prune.plans.masks import sparsity
from prune.plans.plan import Plan
from prune.surgery.apply import apply
from prune.surgery.layerwise import Layerwise
from prune.surgery.moments import apply_moments, stands_for
from prune.weights.layerwise import sparsify_layerwise
from prune.weights.sparsify import sparsify

__all__ = ['Evolved', 'Foreign', 'LayerPlan', 'Layerwise', 'Leaf', 'Plan', 'Safety', 'apply',
           'apply_moments', 'check_options', 'check_weight_options', 'evolve', 'methods',
           'observe_options', 'options', 'plan', 'plan_layerwise', 'safe_sparsity', 'scores',
           'select_experts', 'sensitivity', 'sparsify', 'sparsify_layerwise', 'sparsity',
           'stands_for', 'super_experts', 'weight_methods', 'weight_options']
