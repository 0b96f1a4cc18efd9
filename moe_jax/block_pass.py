"""The model one block at a time: what `observe` and `layerwise` run.

Equal blocks give equal one-layer configs and so share one compiled program, however deep the model.
B rows, T tokens, N = B*T, D width, C tokens picked for the reservoir.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from moe_jax.blocks import Block
from moe_jax.collect import layer_sums, sampled
from moe_jax.config import Config
from moe_jax.model import Embed, Params, rows_in
from moe_jax.observed import MAXIMA


def layer_config(cfg: Config, layer: int) -> Config:
    """The config of a model that has this layer alone; equal layers give equal configs."""
    return cfg.replace(
        experts=(cfg.experts[layer],), windows=(cfg.window(layer),), skip=None,
        aliases=(cfg.alias(layer),), constants=(cfg.constants_in(layer),),
    )


@partial(jax.jit, static_argnums=0)
def embed(cfg: Config, params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """The residual stream before the first block, [B, T, D]."""
    return Embed(cfg).apply({'params': params['embed']}, tokens, rows_in(cfg, segments)[1])


@lru_cache(maxsize=64)
def step(one: Config, mesh: Mesh | None = None) -> Callable[..., jax.Array]:
    """(block parameters, x [B, T, D], segments) -> x after the block; jitted."""

    def run(layer, x, segments):
        rows = rows_in(one, segments)[0]
        return Block(one, 0, False).apply({'params': layer}, x, rows, None, None)[0]

    return _over(mesh, run, (P(), P('data'), P('data')), P('data'))


@lru_cache(maxsize=64)
def watched(one: Config, watch: tuple[str, ...], mesh: Mesh | None = None) -> Callable[..., Any]:
    """(block parameters, x, segments, pick [parts, C]) -> (x after, sums, per token); jitted.

    sums: `collect.layer_sums`; per token: first choices [N], and of the picked tokens their inputs,
    logits and gates. With a mesh the rows are split over its axis 'data', each part with its own
    places to pick.
    """

    def run(layer, x, segments, pick):
        rows = rows_in(one, segments)[0]
        (x, _), state = Block(one, 0, False, watch).apply(
            {'params': layer}, x, rows, None, None, mutable=['routing'])
        record, cosine = state['routing']['moe']['record'][0], state['routing']['cosine'][0]
        sums = layer_sums(record, cosine, segments.ravel() > 0)
        if mesh is not None:
            sums = {name: (jax.lax.pmax if name in MAXIMA else jax.lax.psum)(value, 'data')
                    for name, value in sums.items()}
        tokens = {'top1': record.ids[:, 0]}
        return x, sums, tokens | (sampled(record, pick[0]) if pick.shape[1] else {})

    return _over(mesh, run, (P(), P('data'), P('data'), P('data')), (P('data'), P(), P('data')))


def _over(mesh: Mesh | None, run: Callable[..., Any], given: Any, gives: Any) -> Callable[..., Any]:
    if mesh is None:
        return jax.jit(run)
    # Manual over 'data' alone: weights stay as they are laid out over the other axes.
    return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=given, out_specs=gives,
                                 axis_names={'data'}, check_vma=False))
