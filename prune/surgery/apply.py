"""Carry out a plan: parameters in, smaller parameters out.

Letters: E experts before, G after, R router rows after, D model width.
"""

from typing import Any

import jax
import jax.numpy as jnp

from moe_jax.base import sharding
from moe_jax.base.tree import Params, has_values, on_shapes
from moe_jax.config import CLOSED, Config
from moe_jax.layers.weights import init_std
from moe_jax.model.params import check_params
from prune.plans.layer import LayerPlan
from prune.plans.masks import masked
from prune.plans.plan import Plan
from prune.similarity.align import permute
from prune.similarity.subspace import project
from prune.surgery.combine import combine


def apply(
    params: Params, cfg: Config, plan: Plan, *, donate: bool = False
) -> tuple[dict[str, Any], Config]:
    """The smaller model of a plan, (params, cfg); the inputs stay as they are.

    Weights are combined in float32 and cast back to their own dtype; a kept expert is copied bit
    for bit. Then masks set weights of the new experts to zero, and leave the rest bit for bit. On a
    mesh, the new experts are laid out by its rules. donate: free each array of old experts as soon
    as the new one is made, so that no more than one exists twice; params cannot be used afterwards.
    A pure function: under jit, vmap and grad, and of `jax.ShapeDtypeStruct`, which gives these; the
    plan then can only be held against shapes.
    Raises ValueError if the plan was made for another model, or cfg does not fit params.
    """
    check_params(cfg, params, 'prune.apply', only='/moe/')
    plan.check(cfg, params)

    def run(params: Params) -> tuple[dict[str, Any], Config]:
        out = dict(params)
        for i, layer in plan.layers.items():
            name = f'layer_{i}'
            moe = apply_layer(params[name]['moe'], layer, cfg, i, donate=donate)
            out[name] = {**params[name], 'moe': moe}
        return out, config_of(plan, cfg).fit(out)

    return on_shapes(run, params)


def config_of(plan: Plan, cfg: Config) -> Config:
    """The config of the model that a plan makes.

    Where no layer is left with topk rows to choose from, topk itself falls to what they have; where
    some are, `clamp` lets those layers use all theirs.
    """
    experts, constants = list(cfg.experts), [0] * cfg.layers
    aliases: list[tuple[int, ...] | None] = [None] * cfg.layers
    open_rows = []
    for i, layer in plan.layers.items():
        experts[i] = layer.after
        if layer.masks_only:
            aliases[i], constants[i] = cfg.alias(i), cfg.constants_in(i)
        else:
            aliases[i] = None if layer.alias is None else tuple(layer.alias.tolist())
            constants[i] = 0 if layer.constants is None else len(layer.constants)
        alias = aliases[i]
        rows = range(layer.after) if alias is None else alias
        open_rows.append(sum(row != CLOSED for row in rows))
    router = cfg.router.among(open_rows)
    return cfg.replace(
        experts=tuple(experts), router=router,
        skip=cfg.skip if router.traits.topk == cfg.topk else None,
        aliases=tuple(aliases) if any(a is not None for a in aliases) else (),
        constants=tuple(constants) if any(constants) else (),
    )


def apply_layer(
    moe: Params, layer: LayerPlan, cfg: Config, index: int, *, donate: bool = False
) -> dict[str, Any]:
    """The parameters of one MoE layer (`layer_<index>/moe`) after its plan, on the same mesh."""
    experts, mesh = {}, sharding.mesh_of(moe)
    for name, old in moe['experts'].items():
        made = old if layer.masks_only else _mixed(name, old, layer)
        if name in layer.masks:
            made = masked(made, layer.masks[name], layer.weights.get(name))
        experts[name] = made
        if donate and isinstance(old, jax.Array) and has_values(old) and made is not old:
            made.block_until_ready()
            old.delete()
    new = {**moe, 'experts': experts}
    if not layer.masks_only and 'router' in moe:  # a design may have no parameters
        new['router'] = _router(moe['router'], layer, cfg, index)
    if layer.constants is not None:
        new['constants'] = jnp.asarray(layer.constants, experts['down'].dtype)
    return new if mesh is None else sharding.place({'moe': new}, mesh)['moe']


def _mixed(name: str, old: Any, layer: LayerPlan) -> Any:
    """One leaf of the new experts, [G, ...]."""
    moved = old if layer.perms is None else permute({name: old}, layer.perms)[name]
    made = combine(moved, layer.mix)
    return project(moved, layer.mix != 0, made, layer.rank) if layer.rank else made


def _router(
    router: Params, layer: LayerPlan, cfg: Config, index: int
) -> dict[str, Any]:
    if layer.fresh is not None:
        return _fresh(router, layer, cfg, index)
    assert layer.router is not None  # where it is not drawn
    rows = combine(router, layer.router)
    if layer.router_shift is None:
        return rows
    kernel = rows['kernel']
    shifted = kernel.astype(jnp.float32) + jnp.asarray(layer.router_shift, jnp.float32)
    return {**rows, 'kernel': shifted.astype(kernel.dtype)}


def _fresh(
    router: Params, layer: LayerPlan, cfg: Config, index: int
) -> dict[str, Any]:
    """Router rows as `moe_jax.init` draws them, biases zero; seed and layer index choose the draw.
    """
    assert layer.fresh is not None
    key = jax.random.fold_in(jax.random.key(layer.fresh), index)
    kernel = jax.random.normal(key, (layer.rows, cfg.width), jnp.float32) * init_std(cfg)
    return {name: kernel.astype(leaf.dtype) if name == 'kernel'
            else jnp.zeros((layer.rows,), leaf.dtype) for name, leaf in router.items()}
