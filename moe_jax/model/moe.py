"""The MoE layer: a router, its experts, and what they do for every token."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe_jax.base import sharding
from moe_jax.config import CLOSED, Config
from moe_jax.experts import evaluate, parallel
from moe_jax.kernels.linear import linear
from moe_jax.layers import ffn
from moe_jax.layers.weights import ffn_weights, init_std
from moe_jax.routing import routing, skipping
from moe_jax.routing.alias import constant_part, served, to_experts
from moe_jax.routing.losses import balance_loss, load, z_loss

# (ffn, weights, x [N, D], Routing, evaluated choices [N, K], expert of each router row, valid [N])
# -> (y [N, D], sums by name): evaluates the experts in the layer's place, and says what it saw.
Observer = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


class Record(NamedTuple):
    """What one MoE layer did: its `Routing`, choices not dropped [N, K], router inputs [N, D].

    sums: what the layer's observer summed, by name; empty without one.
    """

    ids: jax.Array
    gates: jax.Array
    logits: jax.Array
    probs: jax.Array
    kept: jax.Array
    inputs: jax.Array
    sums: dict[str, jax.Array]


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
        score = jax.nn.sigmoid(linear(x_ND, kernel).astype(jnp.float32))
        return (y.astype(jnp.float32) * score).astype(y.dtype)


class SparseMoe(nn.Module):
    """The experts in place of the feed-forward layer, [B, T, D] -> [B, T, D].

    importance [B, T] ranks the tokens that keep all their experts, where the config skips some.
    """

    cfg: Config
    layer: int
    train: bool
    observer: Observer | None = None

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
        ids, gates = to_experts(chosen, used, alias, count)
        if self.observer is not None:
            kept = _kept(cfg, self.train, ids, count)
            seen = used & served(chosen, kept, alias, count)
            y, sums = self.observer(ffn.of(cfg), weights, x, chosen, seen,
                                    alias or tuple(range(count)), valid)
        else:
            (y, kept), sums = _evaluate(cfg, self.train, weights, x, ids, gates), {}
        if size := cfg.constants_in(self.layer):
            table = self.param('constants', nn.initializers.zeros, (size, cfg.width), jnp.float32)
            part = constant_part(chosen, used, alias, count, table)
            y = (y.astype(jnp.float32) + part).astype(y.dtype)
        record = Record(*chosen, served(chosen, kept, alias, count), x, sums)
        self.sow('routing', 'record', record)
        if cfg.shared_hidden:
            y = y + SharedExpert(cfg, name='shared')(x)
        self.sow('aux', 'loads', _loads(chosen, ids, gates, kept, valid, count))
        return y.reshape(x_BTD.shape)


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
    return evaluate.capacity_slots(factor, tokens, layer_topk, count, cfg.min_capacity)


def _evaluate(cfg, train, weights, x, ids, gates):
    """Dropless, or with a capacity."""
    count = weights['up'].shape[0]
    slots = _slots(cfg, train, ids.shape[1], x.shape[0], count)
    if slots is None:
        return parallel.evaluate(ffn.of(cfg), weights, x, ids, gates)
    if sharding.current() is None:
        return evaluate.capacity(ffn.of(cfg), weights, x, ids, gates, slots=slots)
    # Which choices are kept depends on the tokens of all devices; only the ids have to be known.
    kept = evaluate.slot_of_choice(ids, count, slots) < count * slots
    ids = jnp.where(kept, ids, count)
    return parallel.evaluate(ffn.of(cfg), weights, x, ids, gates)[0], kept


def _kept(cfg, train, ids, count):
    """Which choices `_evaluate` keeps, bool [N, K], without evaluating anything."""
    slots = _slots(cfg, train, ids.shape[1], ids.shape[0], count)
    if slots is None:
        return ids < count
    return evaluate.slot_of_choice(ids, count, slots) < count * slots


def _loads(chosen, ids, gates, kept, valid, count):
    """What one layer's experts had to do: five scalars, and by expert choices and gate mass [E].

    The scalars: balance loss, z-loss, busiest over mean, share dropped, experts per token.
    """
    used = load(ids, valid, count + 1)[:count]
    mass = jnp.zeros((count + 1,), jnp.float32).at[ids.ravel()].add(gates.ravel())[:count]
    total = jnp.maximum(used.sum(), 1.0)
    dropped = 1.0 - jnp.sum(kept & (ids < count)).astype(jnp.float32) / total
    scalars = (
        balance_loss(chosen, valid),
        z_loss(chosen, valid),
        used.max() * count / total,
        jnp.where(used.sum() > 0, dropped, 0.0),
        used.sum() / jnp.maximum(valid.sum(), 1).astype(jnp.float32),
    )
    return scalars, used, mass


def _closed(cfg, layer):
    """Which router rows are never chosen; None where all may be."""
    alias = cfg.alias(layer)
    return None if alias is None or CLOSED not in alias else tuple(a == CLOSED for a in alias)
