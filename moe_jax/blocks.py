"""The decoder's layers as thin Linen shells; the arithmetic is plain functions on arrays.

Linen gives names, shapes, initial values and `sow`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe_jax import expert_parallel, experts, ffn, observed, ops, routing, sharding, skipping
from moe_jax.attention import Rows
from moe_jax.attention_blocks import Attention, Cache, LatentAttention
from moe_jax.config import CLOSED, Config
from moe_jax.layers import Norm, ffn_weights, init_std


class Record(NamedTuple):
    """What one MoE layer did: its `Routing`, choices not dropped [N, K], router inputs [N, D].

    sums: what `observed` sums of the experts, by name, where it was asked for.
    """

    ids: jax.Array
    gates: jax.Array
    logits: jax.Array
    probs: jax.Array
    kept: jax.Array
    inputs: jax.Array
    sums: dict[str, jax.Array]


class Mlp(nn.Module):
    """A dense feed-forward layer of `hidden` units, [..., D] -> [..., D]."""

    cfg: Config
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return ffn.of(self.cfg)(ffn_weights(self, self.cfg, self.hidden), x)


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
            x_ND, router, topk=cfg.topk_in(self.layer), gate=cfg.gate, scale=cfg.gate_scale,
            groups=cfg.groups, groups_used=cfg.groups_used, closed=_closed(cfg, self.layer),
            jitter=cfg.jitter, key=key,
        )


class ExpertWeights(nn.Module):
    """The experts' arrays, each with E on axis 0."""

    cfg: Config
    count: int

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        return ffn_weights(self, self.cfg, self.cfg.expert_hidden, (self.count,))


class SharedExpert(nn.Module):
    """The expert that every token uses, times the sigmoid of its own gate if it has one; [N, D]."""

    cfg: Config

    @nn.compact
    def __call__(self, x_ND: jax.Array) -> jax.Array:
        cfg = self.cfg
        y = ffn.of(cfg)(ffn_weights(self, cfg, cfg.shared_hidden), x_ND)
        if not cfg.shared_gate:
            return y
        kernel = self.param('score', nn.initializers.normal(init_std(cfg)), (cfg.width, 1),
                            jnp.float32)
        score = jax.nn.sigmoid(ops.linear(x_ND, kernel).astype(jnp.float32))
        return (y.astype(jnp.float32) * score).astype(y.dtype)


class SparseMoe(nn.Module):
    """The experts in place of the feed-forward layer, [B, T, D] -> [B, T, D].

    importance [B, T] ranks the tokens that keep all their experts, where the config skips some.
    """

    cfg: Config
    layer: int
    train: bool
    watch: tuple[str, ...]

    @nn.compact
    def __call__(self, x_BTD: jax.Array, segments: jax.Array, importance: jax.Array | None = None):
        cfg, x, valid = self.cfg, x_BTD.reshape(-1, self.cfg.width), segments.ravel() > 0
        alias, count = cfg.alias(self.layer), cfg.experts[self.layer]
        key = self.make_rng('jitter') if self.train and self.has_rng('jitter') else None
        chosen = Router(cfg, self.layer, name='router')(x, key)
        weights = ExpertWeights(cfg, count, name='experts')()
        used = jnp.broadcast_to(valid[:, None], chosen.ids.shape)
        if cfg.skip is not None and not self.train:
            chosen, active = _skip(cfg, self.layer, chosen, importance, segments)
            used = used & active
        ids, gates = routing.to_experts(chosen, used, alias, count)
        if 'experts' in self.watch:
            kept = _kept(cfg, self.train, ids, count)
            seen = used & routing.served(chosen, kept, alias, count)
            y, sums = observed.evaluate(ffn.of(cfg), weights, x, chosen, seen,
                                        alias or tuple(range(count)), self.watch)
        else:
            (y, kept), sums = _evaluate(cfg, self.train, weights, x, ids, gates), {}
        if size := cfg.constants_in(self.layer):
            table = self.param('constants', nn.initializers.zeros, (size, cfg.width), jnp.float32)
            part = routing.constant_part(chosen, used, alias, count, table)
            y = (y.astype(jnp.float32) + part).astype(y.dtype)
        if 'dense' in self.watch:
            sums |= observed.dense(ffn.of(cfg), weights, x, valid)
        served = routing.served(chosen, kept, alias, count)
        self.sow('routing', 'record', Record(*chosen, served, x, sums))
        if cfg.shared_hidden:
            y = y + SharedExpert(cfg, name='shared')(x)
        self.sow('aux', 'loads', _loads(chosen, ids, gates, kept, valid, count))
        return y.reshape(x_BTD.shape)


class Block(nn.Module):
    """Attention, then feed-forward or experts, each pre-norm and residual; [B, T, D], cache."""

    cfg: Config
    layer: int
    train: bool
    watch: tuple[str, ...] = ()

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
            moe = SparseMoe(cfg, self.layer, self.train, self.watch, name='moe')
            y = moe(h, rows.segments, importance)
        else:
            y = Mlp(cfg, cfg.mlp_hidden, name='mlp')(h)
        after = sharding.keep_rows(x_BTD + ops.scaled(y, cfg.residual_scale))
        if cfg.experts[self.layer]:
            self.sow('routing', 'cosine', ops.cosine(x_BTD, after).ravel())
        if 'stream' in self.watch:
            self.sow('routing', 'stream', after)
        return after, cache


def _skip(cfg, layer, chosen, importance, segments):
    """The routing without what the config skips, and which choices are used [N, K]."""
    safe = None if importance is None else skipping.protected(
        importance, segments, cfg.skip.protect).ravel()
    return skipping.apply(chosen, cfg.skip, layer, cfg.gate, safe)


def _slots(cfg, train, layer_topk, tokens, count):
    """The capacity that training or evaluation asks for; None: dropless."""
    factor = cfg.capacity_train if train else cfg.capacity_eval
    if factor is None:
        return None
    return experts.capacity_slots(factor, tokens, layer_topk, count, cfg.min_capacity)


def _evaluate(cfg, train, weights, x, ids, gates):
    """Dropless, or with a capacity."""
    count = weights['up'].shape[0]
    slots = _slots(cfg, train, ids.shape[1], x.shape[0], count)
    if slots is None:
        return expert_parallel.evaluate(ffn.of(cfg), weights, x, ids, gates)
    if sharding.current() is None:
        return experts.capacity(ffn.of(cfg), weights, x, ids, gates, slots=slots)
    # Which choices are kept depends on the tokens of all devices; only the ids have to be known.
    kept = experts.slot_of_choice(ids, count, slots) < count * slots
    ids = jnp.where(kept, ids, count)
    return expert_parallel.evaluate(ffn.of(cfg), weights, x, ids, gates)[0], kept


def _kept(cfg, train, ids, count):
    """Which choices `_evaluate` keeps, bool [N, K], without evaluating anything."""
    slots = _slots(cfg, train, ids.shape[1], ids.shape[0], count)
    if slots is None:
        return ids < count
    return experts.slot_of_choice(ids, count, slots) < count * slots


def _loads(chosen, ids, gates, kept, valid, count):
    """What one layer's experts had to do: five scalars, and by expert choices and gate mass [E].

    The scalars: balance loss, z-loss, busiest over mean, share dropped, experts per token.
    """
    used = routing.load(ids, valid, count + 1)[:count]
    mass = jnp.zeros((count + 1,), jnp.float32).at[ids.ravel()].add(gates.ravel())[:count]
    total = jnp.maximum(used.sum(), 1.0)
    dropped = 1.0 - jnp.sum(kept & (ids < count)).astype(jnp.float32) / total
    scalars = (
        routing.balance_loss(chosen, valid),
        routing.z_loss(chosen, valid),
        used.max() * count / total,
        jnp.where(used.sum() > 0, dropped, 0.0),
        used.sum() / jnp.maximum(valid.sum(), 1).astype(jnp.float32),
    )
    return scalars, used, mass


def _closed(cfg, layer):
    """Which router rows are never chosen; None where all may be."""
    alias = cfg.alias(layer)
    return None if alias is None or CLOSED not in alias else tuple(a == CLOSED for a in alias)
