"""Plans for fewer experts: statistics in, a plan out, and the plan carried out on parameters.

    plan = prune.plan('uncurl', stats, params, cfg, experts=8)
    small, small_cfg = prune.apply(params, cfg, plan)

`sparsify` plans zeros inside experts in the same way, and `Foreign` does the same to models of
others, described in a few lines.
"""

from prune.apply import apply
from prune.evolution import Evolved, evolve
from prune.foreign import Foreign
from prune.layerwise import Layerwise, plan_layerwise
from prune.leaves import Leaf
from prune.masks import sparsity
from prune.moments import apply_moments, stands_for
from prune.observing import observe_options
from prune.plan import LayerPlan, Plan
from prune.planner import plan
from prune.protect import super_experts
from prune.ranking import scores
from prune.registry import check_options, methods, options
from prune.safe_sparsity import safe_sparsity
from prune.safety import Safety
from prune.select import select as select_experts
from prune.sensitivity import sensitivity
from prune.weights.layerwise import sparsify_layerwise
from prune.weights.registry import check_weight_options, weight_methods, weight_options
from prune.weights.sparsify import sparsify

__all__ = ['Evolved', 'Foreign', 'LayerPlan', 'Layerwise', 'Leaf', 'Plan', 'Safety', 'apply',
           'apply_moments', 'check_options', 'check_weight_options', 'evolve', 'methods',
           'observe_options', 'options', 'plan', 'plan_layerwise', 'safe_sparsity', 'scores',
           'select_experts', 'sensitivity', 'sparsify', 'sparsify_layerwise', 'sparsity',
           'stands_for', 'super_experts', 'weight_methods', 'weight_options']
