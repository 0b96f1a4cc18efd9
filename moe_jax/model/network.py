"""The decoder below its head as Linen modules: token table, blocks, final norm."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe_jax.base import sharding
from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.layers import norm, rope
from moe_jax.layers.attention import Rows
from moe_jax.layers.positions import positions_in_branches, positions_in_segments
from moe_jax.layers.weights import Norm, init_std, normal
from moe_jax.model.block import Block
from moe_jax.model.choices import Observer


class Embed(nn.Module):
    """Token table [V, D] and, without rotary positions, learned positions [P, D].

    Padding (segments [B, T] of 0) is zeros: what stands in the row of its id reaches nothing.
    """

    cfg: Config

    @nn.compact
    def __call__(self, tokens: jax.Array, positions: jax.Array, segments: jax.Array) -> jax.Array:
        cfg, draw = self.cfg, normal(init_std(self.cfg))
        table = self.param('tokens', draw, (cfg.vocab, cfg.width), jnp.float32)
        x = norm.scaled(table[tokens], cfg.embed_scale)
        if cfg.rope is None:
            places = self.param('positions', draw, (cfg.positions, cfg.width), jnp.float32)
            x = x + places[positions]
        x = jnp.where((segments > 0)[..., None], x, 0.0)
        return x.astype(jnp.dtype(cfg.dtype))


class Head(nn.Module):
    """The table [V, D] that gives logits, where it is not the token table."""

    cfg: Config

    @nn.compact
    def __call__(self) -> None:
        cfg = self.cfg
        self.param('kernel', normal(init_std(cfg)), (cfg.vocab, cfg.width),
                   jnp.float32)


class MoeLM(nn.Module):
    """The decoder below its head: tokens, segments int32 [B, T] -> [B, T, D], and the cache."""

    cfg: Config
    train: bool = False
    watch: tuple[str, ...] = ()
    observer: Observer | None = None

    @nn.compact
    def __call__(self, tokens: jax.Array, segments: jax.Array, cache: Params | None = None,
                 branches: jax.Array | None = None):
        cfg = self.cfg
        rows, positions, new = rows_in(cfg, segments, cache, branches, tokens=tokens)
        start = None if cache is None else cache['length']
        x = sharding.keep_rows(Embed(cfg, name='embed')(tokens, positions, segments))
        for i in range(cfg.layers):
            name = f'layer_{i}'
            past = None if cache is None else cache[name]
            block = Block(cfg, i, self.train, self.watch, self.observer, name=name)
            x, past = block(x, rows, past, start)
            new = None if new is None else new | {name: past}
        if not cfg.tied:
            Head(cfg, name='head')()
        return Norm(cfg.norm, cfg.norm_eps, cfg.width, name='norm_final')(x), new


def rows_in(cfg: Config, segments: jax.Array, cache: Params | None = None,
            branches: jax.Array | None = None, tokens: jax.Array | None = None):
    """`Rows`: where the tokens stand; their positions [B, T], and the cache's own new entries."""
    length = segments.shape[1]
    if cache is None:
        slots, key_segments, new = jnp.arange(length), segments, None
        positions = (positions_in_segments(segments) if branches is None else
                     positions_in_branches(segments, branches))
    else:
        start = cache['length']
        slots = start + jnp.arange(length)
        key_segments = jax.lax.dynamic_update_slice_in_dim(cache['segments'], segments, start, 1)
        new = {'length': start + length, 'segments': key_segments}
        earlier = jnp.arange(key_segments.shape[1])[None, None] < slots[None, :, None]
        same = segments[:, :, None] == key_segments[:, None, :]
        positions = (earlier & same).sum(axis=-1, dtype=jnp.int32)
    cos_sin = (None, None) if cfg.rope is None else rope.angles(cfg.rope, positions)
    rows = Rows(segments, slots, key_segments, *cos_sin, tokens=tokens)
    if branches is not None:
        rows = rows._replace(branches=branches, positions=positions)
    return rows, positions, new
