"""Ways to evaluate the chosen experts of every token; all equal `dense` where nothing is dropped.

N tokens, D width, E experts, F hidden, K choices per token, C capacity. An id of E marks a place
that is not used (padding). Every function takes (ffn, weights, x [N, D], ids [N, K], gates [N, K]),
where ffn evaluates one expert (`ffn.py`) and every leaf of weights has E on axis 0. It returns
(y [N, D], kept [N, K] bool): y[n] = sum_k kept[n,k] gates[n,k] f_ids[n,k](x[n]).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax.experts import grouped
from moe_jax.experts.grouped import Expert, grouped_apply
from moe_jax.kernels import grouped_matmul
from moe_jax.kernels.gather import gather_rows, take
from moe_jax.layers.ffn import Ffn
from moe_jax.routing.routing import Slots

Weights = dict[str, Any]
GroupedApply = Callable[[Expert, Weights, jax.Array, jax.Array], jax.Array]


def dense(
    ffn: Ffn, weights: Weights, x: jax.Array, ids: jax.Array, gates: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Every expert on every token: E/K times the work, the oracle the others are held to."""
    y_END = jax.vmap(ffn, in_axes=(0, None))(weights, x)
    chosen = jax.nn.one_hot(ids, y_END.shape[0], dtype=jnp.float32)  # id E gives a zero row
    coefficient = jnp.einsum('nke,nk->ne', chosen, gates)
    y = jnp.einsum('ne,end->nd', coefficient, y_END.astype(jnp.float32))
    return y.astype(x.dtype), ids < y_END.shape[0]


def dropless(
    ffn: Expert,
    weights: Weights,
    x: jax.Array,
    ids: jax.Array,
    gates: jax.Array,
    *,
    count: int | None = None,
    apply: GroupedApply = grouped_apply,
) -> tuple[jax.Array, jax.Array]:
    """Sort the choices by expert, evaluate each expert on its own rows, and sort back; exact.

    ffn may be any function of (weights of one expert, rows [M, D]) to [M, D']; `apply` evaluates it
    on sorted rows as `grouped_apply` does; count: E, where the weights at hand are not of all E.
    """
    (n, k), experts = ids.shape, number_of(weights) if count is None else count
    how = grouped.plan(ffn, weights, x, n * k) if apply is grouped_apply else None
    if how is not None:
        return _dropless_at_once(ffn, how, weights, x, ids, gates)
    order, inverse, sizes = _by_expert(ids, experts)
    rows = gather_rows(x, order // k, inverse.reshape(n, k))
    y = apply(ffn, weights, rows, sizes)
    kept = ids < experts
    return _combine(y, inverse.reshape(n, k), order, gates, kept, x.dtype), kept


def _by_expert(ids, experts):
    """Choices sorted by expert, first tokens first: order [N K], its inverse, sizes [E]."""
    flat = ids.ravel()
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    inverse = jnp.zeros_like(order).at[order].set(jnp.arange(flat.size, dtype=jnp.int32))
    return order, inverse, jnp.zeros((experts + 1,), jnp.int32).at[flat].add(1)[:experts]


def _dropless_at_once(ffn, how, weights, x, ids, gates):
    """`dropless` with the rows gathered right to where grouped matrix products want them."""
    (n, k), experts = ids.shape, number_of(weights)
    order, inverse, sizes = _by_expert(ids, experts)
    to = grouped_matmul.align(sizes, n * k, how[1])
    row_NK = to.place[inverse].reshape(n, k)
    choice = order.at[to.source].get(mode='fill', fill_value=n * k)
    fast = grouped.taking(x)
    rows = gather_rows(x, jnp.where(choice < n * k, choice // k, n), row_NK, fast)
    y = grouped.aligned_apply(ffn, how, weights, rows, to.sizes)
    kept = ids < experts
    return _combine(y, row_NK, choice, gates, kept, x.dtype, fast), kept


def capacity(
    ffn: Ffn, weights: Weights, x: jax.Array, ids: jax.Array, gates: jax.Array, *, slots: int
) -> tuple[jax.Array, jax.Array]:
    """At most `slots` rows per expert, first choices and earlier tokens first; the rest is dropped.

    A dropped choice adds nothing: the token keeps its residual only (Fedus et al. 2021, 2.2).
    """
    (n, k), experts = ids.shape, number_of(weights)
    row_NK = slot_of_choice(ids, experts, slots)
    kept = row_NK < experts * slots
    table = jnp.full((experts * slots + 1,), n * k, jnp.int32)
    table = table.at[row_NK.ravel()].set(jnp.arange(n * k, dtype=jnp.int32))[:-1]
    rows = gather_rows(x, jnp.where(table < n * k, table // k, n), row_NK)
    y = jax.vmap(ffn)(weights, rows.reshape(experts, slots, -1))
    y = _combine(y.reshape(experts * slots, -1), row_NK, table, gates, kept, x.dtype)
    return y, kept


def slots(ffn: Ffn, weights: Weights, x: jax.Array, chosen: Slots) -> jax.Array:
    """y [N, D] where experts chose tokens: every expert on its own C rows, summed with the gates.

    An empty place (token N) reads zeros and adds nothing.
    """
    rows_ECD = x.at[chosen.tokens].get(mode='fill', fill_value=0)
    y = jax.vmap(ffn)(weights, rows_ECD).astype(jnp.float32) * chosen.gates[:, :, None]
    out = jnp.zeros(x.shape, jnp.float32).at[chosen.tokens.ravel()].add(
        y.reshape(-1, x.shape[1]), mode='drop')
    return out.astype(x.dtype)


def number_of(weights: Weights) -> int:
    """E, which every leaf of an expert-major tree has on axis 0."""
    return jax.tree.leaves(weights)[0].shape[0]


def capacity_slots(factor: float, tokens: int, topk: int, experts: int, minimum: int) -> int:
    """C = max(minimum, ceil(factor * N * K / E)), never more than N."""
    return min(tokens, max(minimum, math.ceil(factor * tokens * topk / experts)))


def slot_of_choice(ids: jax.Array, experts: int, slots: int) -> jax.Array:
    """Row e*slots + position of each choice [N, K]; experts*slots where it is dropped or unused.

    Positions count first choices in token order, then second choices, and so on.
    """
    n, k = ids.shape
    flat = ids.T.ravel()
    order = jnp.argsort(flat, stable=True)
    counts = jnp.zeros((experts + 1,), jnp.int32).at[flat].add(1)
    starts = jnp.cumsum(counts) - counts
    ranked = flat[order]
    position = jnp.arange(n * k, dtype=jnp.int32) - starts[ranked]
    row = jnp.where(
        (position < slots) & (ranked < experts), ranked * slots + position, experts * slots
    )
    return jnp.zeros((n * k,), jnp.int32).at[order].set(row).reshape(k, n).T


def _combine(y, row_NK, choice_S, gates, kept, dtype, back=take):
    """Bring expert outputs y [S, D] back to tokens and sum them with their gates, in float32."""
    n, k = row_NK.shape
    per_choice = gather_rows(y, row_NK.ravel(), choice_S[:, None], take, back).reshape(n, k, -1)
    weight = jnp.where(kept, gates, 0.0)[:, :, None]
    return (per_choice.astype(jnp.float32) * weight).sum(axis=1).astype(dtype)
