"""The parts of the decoder as thin Linen shells; the arithmetic is plain functions on arrays.

Linen gives names, shapes, initial values and `sow`. A layer's cache, where there is one, is a dict
of k [B, S, J, C] and v [B, S, J, Cv], and `start` the slot its new keys go to.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe_jax import attention, experts, ffn, ops, rope, routing
from moe_jax.attention import Rows
from moe_jax.config import Config

Cache = dict[str, jax.Array] | None


class Record(NamedTuple):
    """What one MoE layer did: its `Routing`, choices not dropped [N, K], router inputs [N, D]."""

    ids: jax.Array
    gates: jax.Array
    logits: jax.Array
    probs: jax.Array
    kept: jax.Array
    inputs: jax.Array


def init_std(cfg: Config) -> float:
    """Standard deviation of fresh matrices, 0.64/sqrt(D): GPT-2's 0.02 at D = 1024."""
    return 0.64 * cfg.width**-0.5


class Norm(nn.Module):
    """Layer norm (scale and bias) or RMS norm (scale) over the last axis, `size` wide."""

    kind: str
    eps: float
    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param('scale', nn.initializers.ones, (self.size,), jnp.float32)
        if self.kind == 'rms':
            return ops.rms_norm(x, scale, self.eps)
        bias = self.param('bias', nn.initializers.zeros, (self.size,), jnp.float32)
        return ops.layer_norm(x, scale, bias, self.eps)


class Attention(nn.Module):
    """Grouped-query attention; x [B, T, D] -> [B, T, D], and the cache with the new keys."""

    cfg: Config
    layer: int

    @nn.compact
    def __call__(self, x_BTD: jax.Array, rows: Rows, cache: Cache, start: jax.Array | None):
        cfg = self.cfg
        q, k, v = self._project(x_BTD)
        if cfg.rope is not None:
            q, k = (rope.rotate(part, rows.cos, rows.sin, interleaved=cfg.rope.interleaved)
                    for part in (q, k))
        k, v, cache = _remember(cache, start, k, v)
        sinks = self.param('sinks', nn.initializers.zeros, (cfg.heads,), jnp.float32) if (
            cfg.sinks) else None
        scale = cfg.head_dim**-0.5 if cfg.attention_scale is None else cfg.attention_scale
        seen = attention.visible(rows, cfg.window(self.layer))
        mixed = attention.attend(q, k, v, seen, scale, sinks)
        mixed = mixed.reshape(*x_BTD.shape[:2], cfg.heads * cfg.head_dim)
        out = _dense(self, cfg, 'out', mixed.shape[-1], cfg.width, cfg.out_bias, residual=True)
        return ops.linear(mixed, *out), cache

    def _project(self, x_BTD: jax.Array) -> list[jax.Array]:
        """q [B, T, H, C], k and v [B, T, J, C], normed and clipped as the config says."""
        cfg, parts = self.cfg, []
        for name, heads in (('q', cfg.heads), ('k', cfg.kv_heads), ('v', cfg.kv_heads)):
            size = heads * cfg.head_dim
            part = ops.linear(x_BTD, *_dense(self, cfg, name, cfg.width, size, cfg.qkv_bias))
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
    """Multi-head latent attention (DeepSeek-V2, section 2.1); x [B, T, D] -> [B, T, D], cache.

    The cache holds the expanded keys and values of every head.
    """

    cfg: Config
    layer: int

    @nn.compact
    def __call__(self, x_BTD: jax.Array, rows: Rows, cache: Cache, start: jax.Array | None):
        cfg, part = self.cfg, self.cfg.latent
        q_plain, q_turning = jnp.split(self._queries(x_BTD), [part.plain], axis=-1)
        down = ops.linear(x_BTD, *_dense(self, cfg, 'kv_down', cfg.width, part.kv + part.rotary,
                                         cfg.qkv_bias))
        latent, k_turning = jnp.split(down, [part.kv], axis=-1)
        latent = Norm('rms', part.norm_eps, part.kv, name='kv_norm')(latent)
        up = ops.linear(latent, *_dense(self, cfg, 'kv_up', part.kv,
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
        mixed = attention.attend(
            q, k, v, attention.visible(rows, cfg.window(self.layer)), scale)
        mixed = mixed.reshape(*x_BTD.shape[:2], cfg.heads * part.value)
        out = _dense(self, cfg, 'out', mixed.shape[-1], cfg.width, cfg.out_bias, residual=True)
        return ops.linear(mixed, *out), cache

    def _queries(self, x_BTD: jax.Array) -> jax.Array:
        cfg, part = self.cfg, self.cfg.latent
        size = cfg.heads * cfg.key_width
        if part.query:
            low = _dense(self, cfg, 'q_down', cfg.width, part.query, cfg.qkv_bias)
            x_BTD = Norm('rms', part.norm_eps, part.query, name='q_norm')(ops.linear(x_BTD, *low))
            q = ops.linear(x_BTD, *_dense(self, cfg, 'q_up', part.query, size, False))
        else:
            q = ops.linear(x_BTD, *_dense(self, cfg, 'q', cfg.width, size, False))
        return q.reshape(*x_BTD.shape[:2], cfg.heads, cfg.key_width)


class Mlp(nn.Module):
    """A dense feed-forward layer of `hidden` units, [..., D] -> [..., D]."""

    cfg: Config
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return ffn.of(self.cfg)(_ffn_weights(self, self.cfg, self.hidden), x)


class Router(nn.Module):
    """Router kernel [R, D], bias and correction [R]; x [N, D] -> `Routing` over R rows."""

    cfg: Config
    layer: int

    @nn.compact
    def __call__(self, x_ND: jax.Array, key: jax.Array | None) -> routing.Routing:
        cfg, count = self.cfg, self.cfg.router_rows(self.layer)
        normal, zeros = nn.initializers.normal(init_std(cfg)), nn.initializers.zeros
        router = {'kernel': self.param('kernel', normal, (count, cfg.width), jnp.float32)}
        if cfg.router_bias:
            router['bias'] = self.param('bias', zeros, (count,), jnp.float32)
        if cfg.correction:
            router['correction'] = self.param('correction', zeros, (count,), jnp.float32)
        return routing.route(
            x_ND, router, topk=cfg.topk, gate=cfg.gate, scale=cfg.gate_scale, groups=cfg.groups,
            groups_used=cfg.groups_used, jitter=cfg.jitter, key=key,
        )


class ExpertWeights(nn.Module):
    """The experts' arrays, each with E on axis 0."""

    cfg: Config
    count: int

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        return _ffn_weights(self, self.cfg, self.cfg.expert_hidden, (self.count,))


class SharedExpert(nn.Module):
    """The expert that every token uses, times the sigmoid of its own gate if it has one; [N, D]."""

    cfg: Config

    @nn.compact
    def __call__(self, x_ND: jax.Array) -> jax.Array:
        cfg = self.cfg
        y = ffn.of(cfg)(_ffn_weights(self, cfg, cfg.shared_hidden), x_ND)
        if not cfg.shared_gate:
            return y
        kernel = self.param('score', nn.initializers.normal(init_std(cfg)), (cfg.width, 1),
                            jnp.float32)
        score = jax.nn.sigmoid(ops.linear(x_ND, kernel).astype(jnp.float32))
        return (y.astype(jnp.float32) * score).astype(y.dtype)


class SparseMoe(nn.Module):
    """The experts in place of the feed-forward layer, [B, T, D] -> [B, T, D]."""

    cfg: Config
    layer: int
    train: bool

    @nn.compact
    def __call__(self, x_BTD: jax.Array, segments: jax.Array) -> jax.Array:
        cfg, x, valid = self.cfg, x_BTD.reshape(-1, self.cfg.width), segments.ravel() > 0
        key = self.make_rng('jitter') if self.train and self.has_rng('jitter') else None
        chosen = Router(cfg, self.layer, name='router')(x, key)
        alias, count = cfg.alias(self.layer), cfg.experts[self.layer]
        weights = ExpertWeights(cfg, count, name='experts')()
        ids, gates = routing.to_experts(chosen, valid, alias, count)
        y, kept = _evaluate(cfg, self.train, weights, x, ids, gates)
        if cfg.shared_hidden:
            y = y + SharedExpert(cfg, name='shared')(x)
        self.sow('routing', 'record', Record(*chosen, routing.served(chosen, kept, alias), x))
        self.sow('aux', 'loads', _loads(chosen, ids, kept, valid, count))
        return y.reshape(x_BTD.shape)


class Block(nn.Module):
    """Attention, then feed-forward or experts, each pre-norm and residual; [B, T, D], cache."""

    cfg: Config
    layer: int
    train: bool

    @nn.compact
    def __call__(self, x_BTD: jax.Array, rows: Rows, cache: Cache, start: jax.Array | None):
        cfg, norm = self.cfg, (self.cfg.norm, self.cfg.norm_eps, self.cfg.width)
        attend = Attention if cfg.latent is None else LatentAttention
        h = Norm(*norm, name='norm_attn')(x_BTD)
        y, cache = attend(cfg, self.layer, name='attn')(h, rows, cache, start)
        x_BTD = x_BTD + ops.scaled(y, cfg.residual_scale)
        h = Norm(*norm, name='norm_ffn')(x_BTD)
        if cfg.experts[self.layer]:
            y = SparseMoe(cfg, self.layer, self.train, name='moe')(h, rows.segments)
        else:
            y = Mlp(cfg, cfg.mlp_hidden, name='mlp')(h)
        return x_BTD + ops.scaled(y, cfg.residual_scale), cache


def _remember(cache: Cache, start: jax.Array | None, k: jax.Array, v: jax.Array):
    """Keys and values to look at, and the cache with the new ones written at slot `start`."""
    if cache is None:
        return k, v, None
    cache = {
        name: jax.lax.dynamic_update_slice_in_dim(cache[name], new.astype(cache[name].dtype),
                                                  start, axis=1)
        for name, new in (('k', k), ('v', v))
    }
    return cache['k'], cache['v'], cache


def _evaluate(cfg, train, weights, x, ids, gates):
    """Dropless, or with the capacity that training or evaluation asks for."""
    factor = cfg.capacity_train if train else cfg.capacity_eval
    if factor is None:
        return experts.dropless(ffn.of(cfg), weights, x, ids, gates)
    slots = experts.capacity_slots(
        factor, x.shape[0], cfg.topk, weights['up'].shape[0], cfg.min_capacity
    )
    return experts.capacity(ffn.of(cfg), weights, x, ids, gates, slots=slots)


def _loads(chosen, ids, kept, valid, count):
    """(balance loss, z-loss, busiest expert over mean, share of choices dropped) of one layer."""
    used = routing.load(ids, valid, count + 1)[:count]
    total = jnp.maximum(used.sum(), 1.0)
    dropped = 1.0 - jnp.sum(kept & (ids < count)).astype(jnp.float32) / total
    return (
        routing.balance_loss(chosen, valid),
        routing.z_loss(chosen, valid),
        used.max() * count / total,
        jnp.where(used.sum() > 0, dropped, 0.0),
    )


def _residual_std(cfg: Config) -> float:
    return init_std(cfg) * (2 * cfg.layers) ** -0.5


def _ffn_weights(module: nn.Module, cfg: Config, hidden: int, lead: tuple[int, ...] = ()) -> Any:
    """The leaves of a feed-forward, or of several with `lead` before every shape."""
    weights = {}
    for name, shape in ffn.shapes(cfg, hidden).items():
        std = _residual_std(cfg) if name == 'down' else init_std(cfg)
        start = nn.initializers.zeros if name.endswith('bias') else nn.initializers.normal(std)
        weights[name] = module.param(name, start, lead + shape, jnp.float32)
    return weights


def _dense(module, cfg, name, rows, columns, bias, residual=False):
    """Kernel `name` [rows, columns] of a Linen module, and bias `name_bias` or None."""
    std = _residual_std(cfg) if residual else init_std(cfg)
    kernel = module.param(name, nn.initializers.normal(std), (rows, columns), jnp.float32)
    if not bias:
        return kernel, None
    return kernel, module.param(f'{name}_bias', nn.initializers.zeros, (columns,), jnp.float32)
