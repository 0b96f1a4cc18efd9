"""The SMoE decoder and its functional face: parameters in, logits out.

One decoder covers the GPT-2 form of UNCURL (learned positions, layer norm, GELU, tied head) and the
released families; `Config` says which. A MoE layer takes the place of the feed-forward where the
config has experts.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax.base import sharding
from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.layers import norm
from moe_jax.layers.weights import init_std
from moe_jax.model.choices import Loads, Observer, Record
from moe_jax.model.fresh import init, shapes
from moe_jax.model.inputs import checked, is_concrete
from moe_jax.model.network import MoeLM

__all__ = ['Record', 'apply', 'empty_cache', 'forward', 'hidden', 'init', 'init_std',
           'shapes', 'unembed']


def apply(cfg: Config, params: Params, tokens: Any, segments: Any = None) -> jax.Array:
    """Next-token logits [B, T, V] float32 of tokens int32 [B, T], with evaluation capacity; jitted.

    segments int32 [B, T] (None: one segment a row): 0 is padding, 1, 2, ... packed documents.
    Raises ValueError for ids outside the vocabulary, other shapes and rows that are too long; in a
    trace of the caller's (jit, grad, vmap) ids are not known yet, and JAX clamps those that do not
    fit.
    """
    if is_concrete(tokens, segments):
        known = checked(cfg, tokens, segments, 'apply')
        # Those of a device stay where they are.
        tokens, segments = (
            given if isinstance(given, jax.Array) and given.dtype == jnp.int32 else host
            for given, host in zip((tokens, segments), known, strict=True))
    return _apply(cfg, params, tokens, segments)


@partial(sharding.jit, static_argnums=0)
def _apply(cfg: Config, params: Params, tokens: jax.Array, segments: jax.Array | None) -> jax.Array:
    return forward(cfg, params, tokens, segments)[0]


def forward(
    cfg: Config,
    params: Params,
    tokens: jax.Array,
    segments: jax.Array | None = None,
    *,
    train: bool = False,
    key: jax.Array | None = None,
    watch: tuple[str, ...] = (),
    observer: Observer | None = None,
    cache: Params | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Logits [B, T, V] float32 and a dict of what happened on the way.

    out['losses']: the router's losses by name, scalars summed over layers, times the coefficients
    of its config (also out['balance'] and out['zloss'], 0 where its design has none);
    out['load'] [MoE layers]: busiest expert over mean; out['dropped'] [MoE layers]: share of
    choices lost to capacity; out['active'] [MoE layers]: experts a token uses on average;
    out['hits'][layer] and out['mass'][layer] [E]: choices of each expert and the sum of their
    gates, before any capacity. With 'routing' in `watch`, out['routing'][layer] holds the layer's
    `Record` and out['valid'] [N] marks tokens that are not padding; 'stream' adds
    out['stream'][layer] [B, T, D], the residual stream after each layer. An `observer`
    (`model.choices.Observer`) evaluates the experts and adds its sums to the records. `train`
    selects capacity_train and, with a key, router jitter. Which choices a capacity drops depends on
    all B*T tokens. With a `cache` (`empty_cache`) the tokens go on where it ends, and out['cache']
    holds them too. Raises ValueError, or flax's error naming the path, where params, tokens or
    segments do not fit the config.
    """
    x, out = hidden(cfg, params, tokens, segments, train=train, key=key, watch=watch,
                    observer=observer, cache=cache)
    return unembed(cfg, params, x), out


def hidden(
    cfg: Config,
    params: Params,
    tokens: jax.Array,
    segments: jax.Array | None = None,
    *,
    train: bool = False,
    key: jax.Array | None = None,
    watch: tuple[str, ...] = (),
    observer: Observer | None = None,
    cache: Params | None = None,
    branches: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, Any]]:
    """As `forward`, but what the head reads, [B, T, D], in place of the logits.

    branches int32 [B, T]: a segment's tokens of branch 0, its trunk, are followed by those of
    branches 1, 2, ..., each of which goes on from the trunk's end and sees nothing of the others.
    Not with a cache (ValueError).
    """
    segments = jnp.ones_like(tokens) if segments is None else segments
    _check(cfg, params, tokens, segments)
    _check_branches(tokens, branches, cache)
    _check_causal(cfg, branches, cache)
    (x, cache), state = MoeLM(cfg, train, watch, observer).apply(
        {'params': params}, tokens, segments, cache, branches,
        rngs={} if key is None else {'jitter': key},
        mutable=['aux', 'routing'] if watch else ['aux'],
    )
    out = _collect(cfg, state, segments, watch)
    return x, out if cache is None else out | {'cache': cache}


def unembed(cfg: Config, params: Params, x: jax.Array) -> jax.Array:
    """Logits [..., V] float32 of what `hidden` gives, [..., D]."""
    table = params['embed']['tokens'] if cfg.tied else params['head']['kernel']
    logits = jnp.einsum('...d,vd->...v', x, table.astype(x.dtype),
                        preferred_element_type=jnp.float32)
    return norm.scaled(logits, cfg.logit_scale)


def empty_cache(cfg: Config, batch: int, slots: int) -> Params:
    """Room for the keys and values of `slots` tokens in each of `batch` rows, in cfg.dtype.

    A dict of `length` (slots filled, the same in all rows), `segments` [B, S] and, for each layer,
    k [B, S, J, C] and v [B, S, J, Cv].
    """
    heads = cfg.kv_heads if cfg.latent is None else cfg.heads
    k, v = ((batch, slots, heads, width) for width in (cfg.key_width, cfg.value_width))
    dtype = jnp.dtype(cfg.dtype)
    layers = {
        f'layer_{i}': {'k': jnp.zeros(k, dtype), 'v': jnp.zeros(v, dtype)}
        for i in range(cfg.layers)
    }
    return {'length': jnp.zeros((), jnp.int32), 'segments': jnp.zeros((batch, slots), jnp.int32),
            **layers}


def _check(cfg, params, tokens, segments):
    """What flax would pass over in silence: extra subtrees, rows too long, another shape."""
    if tokens.ndim != 2 or tokens.shape != segments.shape:
        raise ValueError(f'tokens {tokens.shape} and segments {segments.shape} must both be [B, T]')
    if (length := tokens.shape[1]) > cfg.positions:
        raise ValueError(f'{length} tokens in a row; the model has {cfg.positions} positions')
    known = {'embed', 'norm_final', *(f'layer_{i}' for i in range(cfg.layers))}
    known |= set() if cfg.tied else {'head'}
    if unknown := sorted(set(params) - known):
        raise ValueError(f'params have {", ".join(unknown)}, which a config of {cfg.layers} layers '
                         'does not; is this the config of these params?')


def _check_branches(tokens, branches, cache):
    if branches is None:
        return
    if cache is not None:
        raise ValueError('branches with a cache: a row with branches is computed at once, without')
    if branches.shape != tokens.shape:
        raise ValueError(f'branches {branches.shape} must be [B, T] as tokens {tokens.shape}')


def _check_causal(cfg, branches, cache):
    if not cfg.traits.causal and not (branches is None and cache is None):
        raise ValueError(f'router design {cfg.router.design!r}: what a token gets depends on later '
                         'tokens, so a sequence cannot be continued (no cache, no generation, no '
                         'shared beginnings); whole rows can be computed')


def _collect(cfg, state, segments, watch):
    loads: dict[int, Loads] = {
        i: state['aux'][f'layer_{i}']['moe']['loads'][0] for i in cfg.moe_layers}

    def column(values):
        return jnp.stack(list(values)) if loads else jnp.zeros((0,), jnp.float32)

    losses = {name: coefficient * column(one.losses[name] for one in loads.values()).sum()
              for name, coefficient in cfg.router.coefficients.items()}
    out = {
        'losses': losses,
        'balance': losses.get('balance', jnp.zeros((), jnp.float32)),
        'zloss': losses.get('zloss', jnp.zeros((), jnp.float32)),
        'load': column(one.busiest for one in loads.values()),
        'dropped': column(one.dropped for one in loads.values()),
        'active': column(one.active for one in loads.values()),
        'hits': {i: one.hits for i, one in loads.items()},
        'mass': {i: one.mass for i, one in loads.items()},
    }
    if 'stream' in watch:
        out['stream'] = {i: state['routing'][f'layer_{i}']['stream'][0] for i in range(cfg.layers)}
    if watch:
        layers = {i: state['routing'][f'layer_{i}'] for i in cfg.moe_layers}
        out['valid'] = segments.ravel() > 0
        out['routing'] = {i: layer['moe']['record'][0] for i, layer in layers.items()}
        out['cosine'] = {i: layer['cosine'][0] for i, layer in layers.items()}
    return out
