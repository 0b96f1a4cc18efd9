"""Attention one sequence at a time, for CPU: the scores of a sequence stay in the cache.

B batch, T queries in a row, S keys in a row, H heads, J key-value heads, G = H/J, C width of
queries and keys, Cv of values, t queries of a part of a row. In value as `attention.attend`.

The backward pass computes the probabilities again from the logarithm of their sum, as flash
attention does (Dao et al. 2022, section 3), so that [H, T, S] exists for one part of one sequence
and is never kept.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from moe_jax.base.varying import alike
from moe_jax.base.vjp import custom_vjp
from moe_jax.layers.attention import MASKED

SCORES = 2**24  # scores that exist at a time: 64 MB of float32
# q, k, v, seen, sinks, mixed values [B, T, H, Cv], logarithm of the sum of the exponentials
# [B, T, H, 1]
Saved = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None, jax.Array, jax.Array]
Sums = tuple[jax.Array, jax.Array]  # gradients by keys [J, S, C] and values [J, S, Cv], float32
Tree = TypeVar('Tree')


@custom_vjp(4)
def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array, scale: float,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """softmax(scale q k^T) v over the keys that are seen, [B, T, H, Cv], as `attention.attend`."""
    return _forward(q, k, v, seen, scale, sinks)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array, scale: float,
    sinks: jax.Array | None,
) -> tuple[jax.Array, Saved]:
    def sequence(one):
        q, k, v, seen = one
        keys, values = (jnp.swapaxes(a, 0, 1) for a in (k, v))

        def part(one):
            q, seen = one
            scores = _scores(_heads(q, k.shape[1]), keys, seen, scale)
            top = scores.max(axis=-1, keepdims=True)
            if sinks is not None:
                own = _of_heads(sinks, k.shape[1], q.shape[0])
                top = jnp.maximum(top, own)
            p = jnp.exp(scores - top)
            total = p.sum(axis=-1, keepdims=True)
            if sinks is not None:
                total = total + jnp.exp(own - top)
            out = _dot(p.astype(v.dtype), values, 1) / total
            return _back(out.astype(v.dtype), len(q)), _back(top + jnp.log(total), len(q))

        return _parts(part, (q, seen), k.shape[0])

    out, log_total = jax.lax.map(sequence, (q, k, v, seen))
    return out, (q, k, v, seen, sinks, out, log_total)


def _backward(
    scale: float, saved: Saved, dout: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None, jax.Array | None]:
    q, k, v, seen, sinks, out, log_total = saved

    def sequence(one):
        q, k, v, seen, out, log_total, dout = one
        keys, values = (jnp.swapaxes(a, 0, 1) for a in (k, v))
        start = tuple(jnp.zeros(a.shape, jnp.float32) for a in (keys, values))

        def part(total, one):
            q, seen, out, log_total, dout = one
            return _part_back(total, q, seen, out, log_total, dout, keys, values, scale, sinks)

        n = _count(q.shape, k.shape[0])
        cut = tuple(a.reshape(n, -1, *a.shape[1:]) for a in (q, seen, out, log_total, dout))
        (dk, dv), (dq, dsinks) = jax.lax.scan(part, alike(start, one, sinks), cut)
        dk, dv = jnp.swapaxes(dk, 0, 1).astype(k.dtype), jnp.swapaxes(dv, 0, 1).astype(v.dtype)
        return dq.reshape(q.shape), dk, dv, dsinks.sum(axis=0)

    dq, dk, dv, dsinks = jax.lax.map(sequence, (q, k, v, seen, out, log_total, dout))
    return dq, dk, dv, None, None if sinks is None else dsinks.sum(axis=0).astype(sinks.dtype)


def _part_back(
    total: Sums, q: jax.Array, seen: jax.Array, out: jax.Array, log_total: jax.Array,
    dout: jax.Array, keys: jax.Array, values: jax.Array, scale: float, sinks: jax.Array | None,
) -> tuple[Sums, tuple[jax.Array, jax.Array]]:
    """Gradients of some queries: added to those of keys and values, and by queries and sinks.

    q [t, H, C], seen [t, S], out and dout [t, H, Cv], log_total [t, H, 1]; keys [J, S, C], values
    [J, S, Cv]; sinks [H].
    """
    (dk, dv), heads = total, keys.shape[0]
    q_heads, g = _heads(q, heads), _heads(dout, heads)
    log_total = _heads(log_total, heads)
    p = jnp.exp(_scores(q_heads, keys, seen, scale) - log_total)
    through = (g.astype(jnp.float32) * _heads(out, heads).astype(jnp.float32)).sum(
        axis=-1, keepdims=True)
    ds = (p * (_dot(g, values, 2) - through) * scale).astype(q.dtype)
    dv = dv + _dot_rows(p.astype(g.dtype), g)
    dk = dk + _dot_rows(ds, q_heads)
    dq = _back(_dot(ds, keys, 1).astype(q.dtype), len(q))
    if sinks is None:
        return (dk, dv), (dq, jnp.zeros((0,), jnp.float32))
    share = jnp.exp(_of_heads(sinks, heads, len(q)) - log_total)
    return (dk, dv), (dq, -(share * through).reshape(sinks.shape[0], -1).sum(axis=-1))


attend.defvjp(_forward, _backward)


def _parts(
    run: Callable[[tuple[jax.Array, ...]], Tree], arrays: tuple[jax.Array, ...], keys: int
) -> Tree:
    """run(arrays [t, ...] of some queries) over all of them [T, ...], in parts of few scores."""
    n = _count(arrays[0].shape, keys)
    if n == 1:
        return run(arrays)
    parts = jax.lax.map(run, tuple(a.reshape(n, -1, *a.shape[1:]) for a in arrays))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), parts)


def _count(shape: tuple[int, ...], keys: int) -> int:
    """The fewest equal parts of queries [T, H, C] that keep to SCORES; 1 where none is near that.
    """
    length, heads = shape[0], shape[1]
    least = math.ceil(heads * length * keys / SCORES)
    return next((n for n in range(least, 4 * least) if length % n == 0), 1)


def _heads(x: jax.Array, kv_heads: int) -> jax.Array:
    """[T, H, C] by key-value head: [J, G T, C]."""
    length, heads, width = x.shape
    x = jnp.moveaxis(x.reshape(length, kv_heads, heads // kv_heads, width), 0, 2)
    return x.reshape(kv_heads, -1, width)


def _back(x: jax.Array, length: int) -> jax.Array:
    """[J, G T, C] as [T, H, C]."""
    kv_heads, rows, width = x.shape
    x = x.reshape(kv_heads, rows // length, length, width)
    return jnp.moveaxis(x, 2, 0).reshape(length, -1, width)


def _scores(q: jax.Array, k: jax.Array, seen: jax.Array, scale: float) -> jax.Array:
    """[J, G T, S], MASKED where not seen; q [J, G T, C], k [J, S, C], seen [T, S]."""
    scores = _dot(q, k, 2) * scale
    masked = jnp.where(seen[None, None], scores.reshape(q.shape[0], -1, *seen.shape), MASKED)
    return masked.reshape(scores.shape)


def _of_heads(sinks: jax.Array, kv_heads: int, length: int) -> jax.Array:
    """The sink of each query's head, [J, G T, 1]."""
    each = jnp.broadcast_to(sinks.astype(jnp.float32)[None, :, None], (length, len(sinks), 1))
    return _heads(each, kv_heads)


def _dot(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
    """Products by head, summed over the last axis of a and `axis` of b; float32."""
    return jax.lax.dot_general(a, b, (((2,), (axis,)), ((0,), (0,))),
                               preferred_element_type=jnp.float32)


def _dot_rows(a: jax.Array, b: jax.Array) -> jax.Array:
    """Products by head, summed over the rows of both; float32."""
    return jax.lax.dot_general(a, b, (((1,), (1,)), ((0,), (0,))),
                               preferred_element_type=jnp.float32)
