"""Evaluations of the chosen experts of every token; all equal `dense` where nothing is dropped.

N tokens, D width, E experts, F hidden, K choices per token, C capacity. An id of E marks a place
that is not used (padding). Every function takes (ffn, weights, x [N, D], ids [N, K], gates [N, K]),
where ffn evaluates one expert (`layers.ffn`) and every leaf of weights has E on axis 0. It returns
(y [N, D], kept [N, K] bool): y[n] = sum_k kept[n,k] gates[n,k] f_ids[n,k](x[n]).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from moe_jax.experts import grouped
from moe_jax.experts.sorting import by_expert
from moe_jax.kernels import grouped_matmul
from moe_jax.kernels.gather import Take, gather_rows, take
from moe_jax.kernels.loop import Expert
from moe_jax.kernels.table import Choice
from moe_jax.layers.ffn import Ffn, Weights
from moe_jax.routing.routing import Slots


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
    ffn: Expert, weights: Weights, x: jax.Array, ids: jax.Array, gates: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sort the choices by expert, evaluate each expert on its own rows, and sort back; exact.

    ffn may be any function of (weights of one expert, rows [M, D]) to [M, D'].
    """
    choice = grouped.choose(ffn, weights, ids.size, x.dtype)
    if grouped.at_once(choice):
        return _dropless_at_once(cast(Ffn, ffn), choice, weights, x, ids, gates)
    return by_sorted_rows(partial(grouped.grouped_apply, ffn, choice, weights), x, ids, gates,
                          number_of(weights))


def by_sorted_rows(
    apply: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, ids: jax.Array,
    gates: jax.Array, experts: int,
) -> tuple[jax.Array, jax.Array]:
    """As `dropless`, with apply(rows [N K, D] sorted by expert, sizes [E]) -> [N K, D']."""
    n, k = ids.shape
    order, inverse, sizes = by_expert(ids.ravel(), experts)
    rows = gather_rows(x, order // k, inverse.reshape(n, k))
    y = apply(rows, sizes)
    kept = ids < experts
    return _combine(y, inverse.reshape(n, k), order, gates, kept, x.dtype), kept


def _dropless_at_once(
    ffn: Ffn, choice: Choice, weights: Weights, x: jax.Array, ids: jax.Array, gates: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`dropless` with the rows gathered right to where grouped matmuls want them."""
    (n, k), experts = ids.shape, number_of(weights)
    order, inverse, sizes = by_expert(ids.ravel(), experts)
    to = grouped_matmul.align(sizes, n * k, choice.block)
    row_NK = to.place[inverse].reshape(n, k)
    index = order.at[to.source].get(mode='fill', fill_value=n * k)
    rows = gather_rows(x, jnp.where(index < n * k, index // k, n), row_NK, choice.take)
    y = grouped.aligned_apply(ffn, choice, weights, rows, to.sizes)
    kept = ids < experts
    return _combine(y, row_NK, index, gates, kept, x.dtype, choice.take), kept


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


def _combine(
    y: jax.Array, row_NK: jax.Array, choice_S: jax.Array, gates: jax.Array, kept: jax.Array,
    dtype: DTypeLike, back: Take = take,
) -> jax.Array:
    """Bring expert outputs y [S, D] back to tokens and sum them with their gates, in float32."""
    n, k = row_NK.shape
    per_choice = gather_rows(y, row_NK.ravel(), choice_S[:, None], take, back).reshape(n, k, -1)
    weight = jnp.where(kept, gates, 0.0)[:, :, None]
    return (per_choice.astype(jnp.float32) * weight).sum(axis=1).astype(dtype)
