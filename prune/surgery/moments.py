"""What a plan says of other things than weights: an optimizer's moments, and a teacher's experts.

Letters: E experts before, G after, R router rows after, D model width, J constants.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from moe_jax.base.tree import map_with_path, mix, on_shapes
from moe_jax.config import Config
from prune.plans.layer import LayerPlan
from prune.plans.masks import masked
from prune.plans.plan import Plan
from prune.similarity.align import permute
from prune.surgery.combine import combine

PLACE = re.compile(r'^layer_(\d+)/moe/(router|experts|constants)(?:/(\w+))?$')


def apply_moments(moments: Any, cfg: Config, plan: Plan, order: Literal[1, 2]) -> Any:
    """The moments of a plan's smaller model: what `prune.apply` does to weights, done to these.

    moments: path -> array (or a tree like params; leaves may be missing), each of its weight's
    shape; cfg: the model's before the plan. order: 1 for running means of the gradient, 2 for those
    of its square (Adam).

    A kept expert takes its moments with it, exactly, in the order of its hidden units. Where
    experts are merged with shares w_e, so are first moments, m = sum_e w_e m_e, as if the merged
    expert had been given the mean of the members' gradients; the second are
    v = (sum_e |w_e| sqrt(v_e))^2. That bounds the mean square of such a gradient whatever the
    members' correlation (Minkowski's inequality), so |m| / sqrt(v) stays as bounded as it was, and
    equal members leave what each had; a sum of squared shares, right for independent gradients,
    would make steps longer where they agree. Router rows likewise. Zero: a router drawn afresh,
    constants that the plan brings, weights that it masks. Not moved: by a router_shift, which adds
    the same to a weight whatever its gradient, and by a projection of rank.

    Raises ValueError for a plan of another model, an order that is neither, and moments of shapes
    that do not fit.
    """
    if order not in COMBINE:
        raise ValueError(f'apply_moments: order={order!r}; 1 for means of the gradient, 2 for '
                         'means of its square')
    dataclasses.replace(plan, model='').check(cfg, {})

    def move(path: str, leaf: Any) -> Any:
        place = PLACE.match(path)
        if not place or int(place[1]) not in plan.layers:
            return leaf
        return _moved(path, leaf, plan.layers[int(place[1])], place[2], place[3], COMBINE[order])

    return on_shapes(lambda moments: (map_with_path(move, moments), None), moments)[0]


def stands_for(plan: Plan) -> dict[int, np.ndarray]:
    """{layer: [G, E]}: new expert g stands for sum_e matrix[g, e] * old expert e.

    What distillation compares the outputs of experts by: the order of hidden units does not matter
    to them.
    """
    return {i: np.array(layer.mix) for i, layer in plan.layers.items()}


def _moved(path: str, leaf: Any, layer: LayerPlan, kind: str, name: str,
           mixed: Callable[[Any, np.ndarray], Any]) -> Any:
    if kind == 'constants':
        return leaf if layer.constants is None else jnp.zeros(layer.constants.shape, leaf.dtype)
    if kind == 'router' and layer.masks_only:
        return leaf
    if kind == 'router' and layer.fresh is not None:
        return jnp.zeros((layer.rows, *leaf.shape[1:]), leaf.dtype)
    if leaf.shape[0] != layer.before:
        raise ValueError(f'apply_moments: {path} has {leaf.shape[0]} rows and the plan is for '
                         f'{layer.before}; give the moments of whole leaves')
    if kind == 'router':
        assert layer.router is not None  # where it is neither drawn nor left alone
        return combine(leaf, layer.router, mixed)
    moved = leaf if layer.perms is None else permute({name: leaf}, layer.perms)[name]
    moved = combine(moved, layer.mix, mixed)
    return masked(moved, layer.masks[name]) if name in layer.masks else moved


def _second(leaf: Any, matrix: np.ndarray) -> Any:
    """(sum_e |w_e| sqrt(v_e))^2."""
    root = jnp.sqrt(jnp.maximum(jnp.asarray(leaf, jnp.float32), 0.0))
    return jnp.square(mix(root, np.abs(matrix))).astype(leaf.dtype)


COMBINE: dict[int, Callable[[Any, np.ndarray], Any]] = {1: mix, 2: _second}
