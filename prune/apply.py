"""Carry out a plan: parameters in, smaller parameters out.

Letters: E experts before, G after, R router rows after, D model width.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.checkpoint import check_params
from moe_jax.config import Config
from moe_jax.model import init_std
from moe_jax.tree import mix, take
from prune.align import permute
from prune.plan import LayerPlan, Plan


def apply(
    params: Mapping[str, Any], cfg: Config, plan: Plan, *, donate: bool = False
) -> tuple[dict[str, Any], Config]:
    """The smaller model of a plan, (params, cfg); the inputs stay as they are.

    Weights are combined in float32 and cast back to their own dtype; a kept expert is copied bit
    for bit. donate: free each array of old experts as soon as the new one is made, so that no more
    than one exists twice; params cannot be used afterwards. Raises ValueError
    if the plan was made for another model, or cfg does not fit params.
    """
    check_params(cfg, params, 'prune.apply')
    plan.check(cfg, params)
    out, experts, aliases = dict(params), list(cfg.experts), [None] * cfg.layers
    for i, layer in plan.layers.items():
        name = f'layer_{i}'
        out[name] = {**params[name], 'moe': _moe(params[name]['moe'], layer, cfg, i, donate)}
        experts[i] = layer.after
        aliases[i] = None if layer.alias is None else tuple(layer.alias.tolist())
    shared = any(alias is not None for alias in aliases)
    small = cfg.replace(experts=tuple(experts), aliases=tuple(aliases) if shared else ())
    return out, small.fit(out)


def _moe(moe: Mapping[str, Any], layer: LayerPlan, cfg: Config, index: int, donate: bool
         ) -> dict[str, Any]:
    experts = {}
    for name, old in moe['experts'].items():
        moved = old if layer.perms is None else permute({name: old}, layer.perms)[name]
        experts[name] = _combine(moved, layer.mix)
        if donate and isinstance(old, jax.Array):
            experts[name].block_until_ready()
            old.delete()
    return {**moe, 'experts': experts, 'router': _router(moe['router'], layer, cfg, index)}


def _router(
    router: Mapping[str, Any], layer: LayerPlan, cfg: Config, index: int
) -> dict[str, Any]:
    if layer.fresh is not None:
        return _fresh(router, layer, cfg, index)
    rows = _combine(router, layer.router)
    if layer.router_shift is None:
        return rows
    kernel = rows['kernel']
    shifted = kernel.astype(jnp.float32) + jnp.asarray(layer.router_shift, jnp.float32)
    return {**rows, 'kernel': shifted.astype(kernel.dtype)}


def _fresh(
    router: Mapping[str, Any], layer: LayerPlan, cfg: Config, index: int
) -> dict[str, Any]:
    """Router rows as `moe_jax.init` draws them; seed and layer index choose the draw."""
    if set(router) != {'kernel'}:
        raise ValueError(
            f'layer_{index}/moe/router has {sorted(router)}: a fresh router is only defined for a '
            "kernel alone; choose another router_init, such as 'reference'"
        )
    key = jax.random.fold_in(jax.random.key(layer.fresh), index)
    kernel = jax.random.normal(key, (layer.rows, cfg.width), jnp.float32) * init_std(cfg)
    return {'kernel': kernel.astype(router['kernel'].dtype)}


def _combine(tree: Any, matrix: np.ndarray) -> Any:
    """`mix`, or `take` where every row is one-hot: exact on every device, and no arithmetic."""
    one_hot = ((matrix == 0) | (matrix == 1)).all() and (matrix.sum(axis=1) == 1).all()
    return take(tree, np.argmax(matrix, axis=1)) if one_hot else mix(tree, matrix)
