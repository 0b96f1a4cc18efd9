"""The model one block at a time: what `observe` and `layerwise` run.

Equal blocks give equal one-layer configs and so share one compiled program, however deep the model.
B rows, T tokens, N = B*T, D width, C tokens picked for the reservoir.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, cast

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from moe_jax.base import sharding
from moe_jax.base.tree import Params
from moe_jax.calibration.layer_sums import layer_sums, sampled
from moe_jax.calibration.table import reduction
from moe_jax.config import Config
from moe_jax.model.block import Block
from moe_jax.model.choices import Observer, Record
from moe_jax.model.network import Embed, rows_in


def layer_config(cfg: Config, layer: int) -> Config:
    """The config of a model that has this layer alone; equal layers give equal configs."""
    return cfg.replace(
        experts=(cfg.experts[layer],), windows=(cfg.window(layer),), skip=None,
        aliases=(cfg.alias(layer),), constants=(cfg.constants_in(layer),),
    )


@partial(sharding.jit, static_argnums=0)
def embed(cfg: Config, params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """The residual stream before the first block, [B, T, D]."""
    return cast(jax.Array, Embed(cfg).apply(
        {'params': params['embed']}, tokens, rows_in(cfg, segments)[1], segments))


@lru_cache(maxsize=64)
def step(one: Config, mesh: Mesh | None = None) -> Callable[..., jax.Array]:
    """(block parameters, x [B, T, D], tokens, segments) -> x after the block; jitted."""

    def run(layer, x, tokens, segments):
        rows = rows_in(one, segments, tokens=tokens)[0]
        return Block(one, 0, False).apply({'params': layer}, x, rows, None, None)[0]

    return _over(mesh, run, 'wrrr', 'r')


@lru_cache(maxsize=64)
def watched(one: Config, observer: Observer, mesh: Mesh | None = None) -> Callable[..., Any]:
    """(block parameters, x, tokens, segments, pick [parts, C]) -> (x, sums, per token); jitted.

    sums: `collect.layer_sums`; per token: first choices [N], and of the picked tokens their inputs,
    logits and gates. With a mesh the rows are split over its row axes, each part with its own
    places to pick.
    """
    parts, axes = sharding.row_parts(mesh), () if mesh is None else sharding.row_axes(mesh)

    def run(layer, x, tokens, segments, pick):
        rows = rows_in(one, segments, tokens=tokens)[0]
        (x, _), state = Block(one, 0, False, (), observer).apply(
            {'params': layer}, x, rows, None, None, mutable=['routing'])
        record = cast(Record, state['routing']['moe']['record'][0])
        cosine = cast(jax.Array, state['routing']['cosine'][0])
        sums = layer_sums(record, cosine, segments.ravel() > 0)
        if parts > 1:
            sums = {name: reduction(name, jax.lax.psum, jax.lax.pmax)(value, axes)
                    for name, value in sums.items()}
        first = {'top1': record.ids[:, 0]}
        return x, sums, first | (sampled(record, pick[0]) if pick.shape[1] else {})

    return _over(mesh, run, 'wrrrr', 'rwr')


def _over(mesh: Mesh | None, run: Callable[..., Any], given: str, gives: str) -> Callable[..., Any]:
    """Jitted, on each device's rows; 'r' stands for what has rows, 'w' for what is whole.

    Of the weights, each device gathers one block at a time; they stay split over 'model'.
    """
    if mesh is None or not (axes := sharding.row_axes(mesh)):
        return sharding.jit(run)
    specs = {'r': P(axes), 'w': P()}
    into, out = (tuple(specs[kind] for kind in kinds) for kinds in (given, gives))
    return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=into, axis_names=set(axes),
                                 out_specs=out if len(gives) > 1 else out[0],
                                 check_vma=False))
