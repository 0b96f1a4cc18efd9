"""Plans for fewer experts: statistics in, a plan out, and the plan carried out on parameters.

    plan = prune.plan('uncurl', stats, params, cfg, experts=8)
    small, small_cfg = prune.apply(params, cfg, plan)

`sparsify` plans zeros inside experts in the same way, and `Foreign` does the same to models of
others, described in a few lines.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
