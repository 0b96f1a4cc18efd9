"""Sums over rows of the gradient of the language-model loss by the experts' weights.

The loss of a row is the sum of -log p of its tokens; each row is differentiated by itself, so that
the sums do not depend on batches. Source: the accumulators of GBLM-Pruner (Das et al. 2023), of
PLATON (Zhang et al. 2022) and of MC-Suite's gradient criteria.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax.base import sharding
from moe_jax.base.tree import Params, at, leaves_with_paths
from moe_jax.config import Config
from moe_jax.inference.score import target_log_probs
from moe_jax.layers.positions import has_past
from moe_jax.model.decoder import hidden

MAGNITUDES = {
    'grad_abs': lambda w, g: jnp.abs(g),
    'grad_square': lambda w, g: jnp.square(g),
    'grad_weight': lambda w, g: jnp.abs(w * g),
}


@partial(sharding.jit, static_argnums=0)
def gradient_sums(
    cfg: Config, params: Params, tokens: jax.Array, segments: jax.Array
) -> dict[int, dict[str, jax.Array]]:
    """{layer: {'grad_abs/up': [E, D, F], ...}}, for every leaf of the experts; float32."""
    experts = {i: params[f'layer_{i}']['moe']['experts'] for i in cfg.moe_layers}
    weights = jax.tree.map(lambda w: w.astype(jnp.float32), experts)

    def row(total, one):
        gradient = jax.grad(_loss)(weights, cfg, params, *one)
        part = {name: jax.tree.map(f, weights, gradient) for name, f in MAGNITUDES.items()}
        return jax.tree.map(jnp.add, total, part), None

    start = {name: jax.tree.map(jnp.zeros_like, weights) for name in MAGNITUDES}
    total, _ = jax.lax.scan(row, start, (tokens, segments))
    return {i: {f'{name}/{leaf}': value for name, layers in total.items()
                for leaf, value in leaves_with_paths(layers[i])} for i in experts}


def _loss(weights: dict[int, Any], cfg: Config, params: Params, tokens: jax.Array,
          segments: jax.Array) -> jax.Array:
    for i, experts in weights.items():
        params = at(params, f'layer_{i}/moe/experts', lambda _, experts=experts: experts)
    tokens, segments = tokens[None], segments[None]
    x, _ = hidden(cfg, params, tokens, segments)
    log_probs = target_log_probs(cfg, params, x, jnp.roll(tokens, -1, axis=1))[0][:, :-1]
    known = has_past(segments)
    return -jnp.where(known, log_probs, 0.0).sum()
