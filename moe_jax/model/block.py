"""The decoder's layers as thin Linen shells; the arithmetic is plain functions on arrays.

Linen gives names, shapes, initial values and `sow`.
"""


import jax
import jax.numpy as jnp
from flax import linen as nn

from moe_jax.base import sharding
from moe_jax.config import Config
from moe_jax.layers import ffn
from moe_jax.layers import norm as ops
from moe_jax.layers.attention import Rows
from moe_jax.layers.modules import Attention, Cache, LatentAttention
from moe_jax.layers.weights import Norm, ffn_weights
from moe_jax.model.choices import Observer
from moe_jax.model.moe import SparseMoe


class Mlp(nn.Module):
    """A dense feed-forward layer of `hidden` units, [..., D] -> [..., D]."""

    cfg: Config
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return ffn.of(self.cfg)(ffn_weights(self, self.cfg, self.hidden), x)


class Block(nn.Module):
    """Attention, then feed-forward or experts, each pre-norm and residual; [B, T, D], cache."""

    cfg: Config
    layer: int
    train: bool
    watch: tuple[str, ...] = ()
    observer: Observer | None = None

    @nn.compact
    def __call__(self, x_BTD: jax.Array, rows: Rows, cache: Cache, start: jax.Array | None):
        cfg, norm = self.cfg, (self.cfg.norm, self.cfg.norm_eps, self.cfg.width)
        attend = Attention if cfg.latent is None else LatentAttention
        h = Norm(*norm, name='norm_attn')(x_BTD)
        y, cache, received = attend(cfg, self.layer, name='attn')(h, rows, cache, start)
        x_BTD = x_BTD + ops.scaled(y, cfg.residual_scale)
        h = Norm(*norm, name='norm_ffn')(x_BTD)
        if cfg.experts[self.layer]:
            importance = None if received is None else received * jnp.abs(
                x_BTD.astype(jnp.float32)).sum(axis=-1)
            moe = SparseMoe(cfg, self.layer, self.train, self.observer, name='moe')
            y = moe(h, rows, importance)
        else:
            y = Mlp(cfg, cfg.mlp_hidden, name='mlp')(h)
        after = sharding.keep_rows(x_BTD + ops.scaled(y, cfg.residual_scale))
        if cfg.experts[self.layer]:
            self.sow('routing', 'cosine', ops.cosine(x_BTD, after).ravel())
        if 'stream' in self.watch:
            self.sow('routing', 'stream', after)
        return after, cache
