# What the package exports: read by type checkers, and by __init__.py, which imports a name when it
# is first used, so that the command answers --help before JAX is there.
from .catalog.registry import (
    check_options,
    check_weight_options,
    methods,
    observe_options,
    options,
    weight_methods,
    weight_options,
)
from .curves.safe_sparsity import safe_sparsity
from .curves.safety import Safety
from .experts.evolution import Evolved, evolve
from .experts.layerwise import plan_layerwise
from .experts.planner import plan
from .experts.protect import super_experts
from .experts.ranking import scores
from .experts.select import select_experts
from .experts.sensitivity import sensitivity
from .foreign.foreign import Foreign
from .foreign.leaves import Leaf
from .plans.layer import LayerPlan
from .plans.masks import sparsity
from .plans.plan import Plan
from .surgery.apply import apply
from .surgery.layerwise import Layerwise
from .surgery.moments import apply_moments, stands_for
from .weights.layerwise import sparsify_layerwise
from .weights.sparsify import sparsify

__all__ = ['Evolved', 'Foreign', 'LayerPlan', 'Layerwise', 'Leaf', 'Plan', 'Safety', 'apply',
           'apply_moments', 'check_options', 'check_weight_options', 'evolve', 'methods',
           'observe_options', 'options', 'plan', 'plan_layerwise', 'safe_sparsity', 'scores',
           'select_experts', 'sensitivity', 'sparsify', 'sparsify_layerwise', 'sparsity',
           'stands_for', 'super_experts', 'weight_methods', 'weight_options']
