"""Attention as thin Linen shells over `attention` and `rope`.

A layer's cache, where there is one, is a dict of k [B, S, J, C] and v [B, S, J, Cv], and `start`
the slot its new keys go to.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe_jax.base import sharding
from moe_jax.config import Config
from moe_jax.kernels import target
from moe_jax.kernels.linear import linear
from moe_jax.layers import attention, attention_loop, rope
from moe_jax.layers.attention import Rows
from moe_jax.layers.weights import Norm, dense_weights

Cache = dict[str, jax.Array] | None


class Attention(nn.Module):
    """Grouped-query attention; x [B, T, D] -> [B, T, D], the cache with the new keys, and the
    attention each token receives [B, T] where the config asks for it (else None)."""

    cfg: Config
    layer: int

    @nn.compact
    def __call__(self, x_BTD: jax.Array, rows: Rows, cache: Cache, start: jax.Array | None):
        cfg = self.cfg
        q, k, v = self._project(x_BTD)
        if cfg.rope is not None:
            assert rows.cos is not None and rows.sin is not None
            q, k = (rope.rotate(part, rows.cos, rows.sin, interleaved=cfg.rope.interleaved)
                    for part in (q, k))
        k, v, cache = _remember(cache, start, k, v)
        sinks = self.param('sinks', nn.initializers.zeros, (cfg.heads,), jnp.float32) if (
            cfg.sinks) else None
        scale = cfg.head_dim**-0.5 if cfg.attention_scale is None else cfg.attention_scale
        mixed, received = _attend(self, q, k, v, rows, scale, sinks)
        mixed = mixed.reshape(*x_BTD.shape[:2], cfg.heads * cfg.head_dim)
        out = dense_weights(self, cfg, 'out', mixed.shape[-1], cfg.width, cfg.out_bias,
                            residual=True)
        return linear(mixed, *out), cache, received

    def _project(self, x_BTD: jax.Array) -> list[jax.Array]:
        """q [B, T, H, C], k and v [B, T, J, C], normed and clipped as the config says."""
        cfg, parts = self.cfg, []
        for name, heads in (('q', cfg.heads), ('k', cfg.kv_heads), ('v', cfg.kv_heads)):
            size = heads * cfg.head_dim
            part = linear(x_BTD, *dense_weights(self, cfg, name, cfg.width, size, cfg.qkv_bias))
            if cfg.qk_norm == 'full' and name != 'v':
                part = Norm('rms', cfg.norm_eps, size, name=f'{name}_norm')(part)
            if cfg.clip_qkv is not None:
                part = jnp.clip(part, -cfg.clip_qkv, cfg.clip_qkv)
            part = part.reshape(*x_BTD.shape[:2], heads, cfg.head_dim)
            if cfg.qk_norm == 'head' and name != 'v':
                part = Norm('rms', cfg.norm_eps, cfg.head_dim, name=f'{name}_norm')(part)
            parts.append(part)
        return parts


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, section 2.1); returns as `Attention`.

    The cache holds the expanded keys and values of every head.
    """

    cfg: Config
    layer: int

    @nn.compact
    def __call__(self, x_BTD: jax.Array, rows: Rows, cache: Cache, start: jax.Array | None):
        cfg, part = self.cfg, self.cfg.latent
        assert part is not None and cfg.rope is not None  # or `Attention` takes its place
        assert rows.cos is not None and rows.sin is not None
        q_plain, q_turning = jnp.split(self._queries(x_BTD), [part.plain], axis=-1)
        down = linear(x_BTD, *dense_weights(
            self, cfg, 'kv_down', cfg.width, part.kv + part.rotary, cfg.qkv_bias))
        latent, k_turning = jnp.split(down, [part.kv], axis=-1)
        latent = Norm('rms', part.norm_eps, part.kv, name='kv_norm')(latent)
        up = linear(latent, *dense_weights(self, cfg, 'kv_up', part.kv,
                                        cfg.heads * (part.plain + part.value), False))
        up = up.reshape(*x_BTD.shape[:2], cfg.heads, part.plain + part.value)
        k_plain, v = jnp.split(up, [part.plain], axis=-1)
        q_turning, k_turning = (
            rope.rotate(y, rows.cos, rows.sin, interleaved=cfg.rope.interleaved)
            for y in (q_turning, k_turning[:, :, None])
        )
        k_turning = jnp.broadcast_to(k_turning, (*k_plain.shape[:3], part.rotary))
        q = jnp.concatenate([q_plain, q_turning], axis=-1)
        k = jnp.concatenate([k_plain, k_turning], axis=-1)
        k, v, cache = _remember(cache, start, k, v)
        scale = cfg.key_width**-0.5 if cfg.attention_scale is None else cfg.attention_scale
        mixed, received = _attend(self, q, k, v, rows, scale)
        mixed = mixed.reshape(*x_BTD.shape[:2], cfg.heads * part.value)
        out = dense_weights(self, cfg, 'out', mixed.shape[-1], cfg.width, cfg.out_bias,
                            residual=True)
        return linear(mixed, *out), cache, received

    def _queries(self, x_BTD: jax.Array) -> jax.Array:
        cfg, part = self.cfg, self.cfg.latent
        assert part is not None
        size = cfg.heads * cfg.key_width
        if part.query:
            low = dense_weights(self, cfg, 'q_down', cfg.width, part.query, cfg.qkv_bias)
            x_BTD = Norm('rms', part.norm_eps, part.query, name='q_norm')(linear(x_BTD, *low))
            q = linear(x_BTD, *dense_weights(self, cfg, 'q_up', part.query, size, False))
        else:
            q = linear(x_BTD, *dense_weights(self, cfg, 'q', cfg.width, size, False))
        return q.reshape(*x_BTD.shape[:2], cfg.heads, cfg.key_width)


def _attend(
    module: nn.Module, q: jax.Array, k: jax.Array, v: jax.Array, rows: Rows, scale: float,
    sinks: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Mixed values, and the attention each query's own token receives, if it protects tokens."""
    skip = module.cfg.skip
    seen = attention.visible(rows, module.cfg.window(module.layer))
    if skip is None or not skip.protect:
        alone = target.platform() == 'cpu' and sharding.current() is None and q.shape[1] > 1
        attend = attention_loop.attend if alone else attention.attend
        return attend(q, k, v, seen, scale, sinks), None
    probs = attention.probabilities(q, k, seen, scale, sinks)
    mixed = attention.mix(probs, v)
    received = attention.received(probs, rows.segments)
    return mixed, jnp.take(received, rows.slots, axis=1)


def _remember(cache: Cache, start: jax.Array | None, k: jax.Array, v: jax.Array):
    """Keys and values to look at, and the cache with the new ones written at slot `start`."""
    if cache is None:
        return k, v, None
    assert start is not None  # with a cache
    cache = {
        name: jax.lax.dynamic_update_slice_in_dim(cache[name], new.astype(cache[name].dtype),
                                                  start, axis=1)
        for name, new in (('k', k), ('v', v))
    }
    return cache['k'], cache['v'], cache
