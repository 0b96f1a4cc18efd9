"""From the choices of a MoE layer's tokens to its output, and the account of what happened.

N tokens, D width, E experts, R router rows, K choices per token. Plain functions on arrays.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe_jax.base import sharding
from moe_jax.config import Config
from moe_jax.experts import evaluate, parallel
from moe_jax.layers import ffn
from moe_jax.routing import skipping
from moe_jax.routing.alias import constant_part, served, to_experts
from moe_jax.routing.losses import load
from moe_jax.routing.routing import Routing

# (ffn, weights, x [N, D], Routing, evaluated choices [N, K], expert of each router row, valid [N])
# -> (y [N, D], sums by name): evaluates the experts in the layer's place, and says what it saw.
Observer = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


class Record(NamedTuple):
    """What one MoE layer did."""

    ids: jax.Array  # [N, K], router rows chosen
    gates: jax.Array  # [N, K]
    logits: jax.Array  # [N, R]
    probs: jax.Array  # [N, R]
    kept: jax.Array  # bool [N, K], choices that were used and not dropped for lack of capacity
    inputs: jax.Array  # [N, D], what the router read
    sums: dict[str, jax.Array]  # what the layer's observer summed; empty without one


class Loads(NamedTuple):
    """What one layer's experts had to do."""

    losses: Mapping[str, jax.Array]  # scalars, of the router's design
    busiest: jax.Array  # choices of the busiest expert over the mean
    dropped: jax.Array  # share of choices lost to capacity
    active: jax.Array  # experts that a token uses on average
    hits: jax.Array  # [E], choices, before any capacity
    mass: jax.Array  # [E], sum of the gates of choices


def in_use(
    cfg: Config, layer: int, routed: Routing, segments: jax.Array, importance: jax.Array | None,
    *, skips: bool,
) -> Routing:
    """The routing with `used` [N, K]: neither padding, nor skipped, nor left out by its design."""
    valid = segments.ravel() > 0
    used = jnp.broadcast_to(valid[:, None], routed.ids.shape)
    used = used if routed.used is None else used & routed.used
    if cfg.skip is not None and skips:
        safe = None if importance is None else skipping.protected(
            importance, segments, cfg.skip.protect).ravel()
        routed, active = skipping.apply(
            routed, cfg.skip, layer, renormalized=cfg.traits.renormalized, protected_N=safe)
        used = used & active
    return routed._replace(used=used)


def evaluated(
    cfg: Config, layer: int, train: bool, observer: Observer | None,
    weights: Mapping[str, jax.Array], x: jax.Array, chosen: Routing, valid_N: jax.Array,
) -> tuple[jax.Array, Record, Loads]:
    """Output [N, D] of the layer's experts, and the account of what they did.

    valid [N]: no padding.
    """
    alias, count = cfg.alias(layer), cfg.experts[layer]
    assert chosen.used is not None  # filled in by `choose`
    ids, gates = to_experts(chosen, chosen.used, alias, count)
    slots, sums = _capacity(cfg, train, ids, count, chosen), {}
    if observer is not None:
        kept = served(chosen, _kept(ids, count, slots), alias, count)
        expert_of = alias or tuple(range(count))
        y, sums = observer(ffn.of(cfg), weights, x, chosen, chosen.used & kept, expert_of,
                           valid_N)
    else:
        y, kept = _evaluate(cfg, weights, x, chosen, ids, gates, slots)
        kept = served(chosen, kept, alias, count)
    record = Record(*chosen[:4], kept, x, sums)
    return y, record, _loads(cfg, chosen, ids, gates, kept, valid_N, count)


def with_constants(
    cfg: Config, layer: int, y_ND: jax.Array, chosen: Routing, table_JD: jax.Array
) -> jax.Array:
    """The output with the constants added that stand in for experts."""
    alias = cfg.alias(layer)
    assert chosen.used is not None and alias is not None  # constants stand in an alias
    part = constant_part(chosen, chosen.used, alias, cfg.experts[layer], table_JD)
    return (y_ND.astype(jnp.float32) + part).astype(y_ND.dtype)


def _loads(
    cfg: Config, chosen: Routing, ids: jax.Array, gates: jax.Array, kept: jax.Array,
    valid_N: jax.Array, count: int,
) -> Loads:
    hits = load(ids, valid_N, count + 1)[:count]
    mass = jnp.zeros((count + 1,), jnp.float32).at[ids.ravel()].add(gates.ravel())[:count]
    total = jnp.maximum(hits.sum(), 1.0)
    dropped = 1.0 - jnp.sum(kept & (ids < count)).astype(jnp.float32) / total
    return Loads(
        cfg.router.losses(chosen, valid_N),
        hits.max() * count / total,
        jnp.where(hits.sum() > 0, dropped, 0.0),
        hits.sum() / jnp.maximum(valid_N.sum(), 1).astype(jnp.float32),
        hits, mass)


def _capacity(cfg: Config, train: bool, ids: jax.Array, count: int, chosen: Routing) -> int | None:
    """Places that an expert has; None: dropless, as where the design itself shares them out."""
    factor = cfg.capacity_train if train else cfg.capacity_eval
    if factor is None or chosen.slots is not None:
        return None
    tokens, topk = ids.shape
    return evaluate.capacity_slots(factor, tokens, topk, count, cfg.min_capacity)


def _kept(ids: jax.Array, count: int, slots: int | None) -> jax.Array:
    """Which choices fit into the places, bool [N, K]."""
    if slots is None:
        return ids < count
    return evaluate.slot_of_choice(ids, count, slots) < count * slots


def _evaluate(
    cfg: Config, weights: Mapping[str, jax.Array], x: jax.Array, chosen: Routing, ids: jax.Array,
    gates: jax.Array, slots: int | None,
) -> tuple[jax.Array, jax.Array]:
    """Output [N, D], and which choices were kept [N, K]: dropless, with a capacity, or by slots."""
    count = weights['up'].shape[0]
    alone = sharding.current() is None
    if alone and chosen.slots is not None and ids.shape[1] == count and not cfg.aliases:
        return evaluate.slots(ffn.of(cfg), weights, x, chosen.slots), ids < count
    if slots is None:
        return parallel.evaluate(ffn.of(cfg), weights, x, ids, gates)
    if alone:
        return evaluate.capacity(ffn.of(cfg), weights, x, ids, gates, slots=slots)
    # Which choices are kept depends on the tokens of all devices; only the ids have to be known.
    kept = _kept(ids, count, slots)
    ids = jnp.where(kept, ids, count)
    return parallel.evaluate(ffn.of(cfg), weights, x, ids, gates)[0], kept
