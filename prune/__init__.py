"""Plans for fewer experts: statistics in, a plan out, and the plan carried out on parameters.

    plan = prune.plan('uncurl', stats, params, cfg, experts=8)
    small, small_cfg = prune.apply(params, cfg, plan)
"""

from prune.apply import apply
from prune.plan import LayerPlan, Plan
from prune.planner import plan
from prune.protect import super_experts
from prune.registry import check_options, methods, observe_options, options
from prune.select import select as select_experts

__all__ = ['LayerPlan', 'Plan', 'apply', 'check_options', 'methods', 'observe_options', 'options',
           'plan', 'select_experts', 'super_experts']
