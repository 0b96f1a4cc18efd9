"""Plans for fewer experts: statistics in, a plan out, and the plan carried out on parameters.

    plan = prune.plan('uncurl', stats, params, cfg, experts=8)
    small, small_cfg = prune.apply(params, cfg, plan)
"""

from prune.apply import apply
from prune.plan import LayerPlan, Plan
from prune.planner import check_options, methods, options, plan

__all__ = ['LayerPlan', 'Plan', 'apply', 'check_options', 'methods', 'options', 'plan']
