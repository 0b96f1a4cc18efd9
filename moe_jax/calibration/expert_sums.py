"""Evaluate the chosen experts of every token, and sum the statistics of them that pruning reads.

N tokens, D width, F hidden, E experts, R router rows, K choices per token; S rows sorted by router
row, M rows of one expert. Only what is routed is evaluated, once, by the same code as
`experts.dropless`. The sums are those of `table` that are made of evaluated choices, float32, over
one batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe_jax.calibration.table import reduction
from moe_jax.experts import grouped, grouped_chunks
from moe_jax.experts.sorting import by_expert
from moe_jax.kernels import loop, target
from moe_jax.kernels.bits import as_bits, from_bits
from moe_jax.kernels.gather import gather_rows
from moe_jax.layers import ffn as ffns
from moe_jax.layers.ffn import Ffn, Weights
from moe_jax.routing.routing import Routing

HIGHEST = jax.lax.Precision.HIGHEST
BESIDE = 8  # arrays of the size of a hidden layer that its sums are made from
DENSE_BLOCK = 256  # tokens whose outputs of all experts exist at a time

Sums = dict[str, jax.Array]
Pairs = dict[str, tuple[jax.Array, jax.Array]]  # coefficients [M, A] and values [M, B], float32


class ExpertSums(NamedTuple):
    """An observer of a MoE layer (`model.moe.Observer`): `evaluate`, and with `dense` its sums."""

    grams: bool = False
    dense: bool = False

    def __call__(
        self, ffn: Ffn, weights: Weights, x: jax.Array, routing: Routing,
        used_NK: jax.Array, expert_of: tuple[int, ...], valid: jax.Array,
    ) -> tuple[jax.Array, Sums]:
        """Outputs y [N, D] and sums of one layer's experts on x [N, D]; valid [N]: no padding."""
        y, sums = evaluate(ffn, weights, x, routing, used_NK, expert_of, grams=self.grams)
        return y, sums | (dense(ffn, weights, x, valid) if self.dense else {})


def evaluate(
    ffn: Ffn,
    weights: Weights,
    x: jax.Array,
    routing: Routing,
    used_NK: jax.Array,
    expert_of: tuple[int, ...],
    *,
    grams: bool = False,
) -> tuple[jax.Array, Sums]:
    """y [N, D] = sum over used choices of gate times expert output, and the sums above.

    expert_of [R]: the expert of each router row; a row without one (below 0, or a constant at E and
    above) is not evaluated.
    """
    (n, k), rows = routing.ids.shape, len(expert_of)
    table, count = jnp.asarray(expert_of, jnp.int32), weights['up'].shape[0]
    real = (table >= 0) & (table < count)
    used = used_NK & real[routing.ids]
    order, inverse, sizes = by_expert(jnp.where(used, routing.ids, rows).ravel(), rows)
    gates = jnp.where(used, routing.gates, 0.0)
    gathered = gather_rows(x, order // k, inverse.reshape(n, k))

    own = gates.ravel()[order]
    choice = grouped.choose(ffn, weights, n * k, x.dtype)
    if choice.name == 'native' and expert_of == tuple(range(count)):
        y, sums = _all_experts(ffn, weights, gathered, own, sizes, grams)
    else:
        def one(w, rows, gates, valid):
            return _expert(ffn, w, rows, gates, valid, grams)

        y, sums = loop.sums(one, joined, weights, gathered, own, sizes,
                            jnp.where(real, table, 0))
    y_NKD = gather_rows(y, inverse, order[:, None]).reshape(n, k, -1)
    out = jnp.einsum('nkd,nk->nd', y_NKD.astype(jnp.float32), gates)
    sums['moments'] = jnp.moveaxis(sums['moments'], 0, -1)
    sums['output_cosine'] = _cosines(y_NKD, routing.ids, used, rows)
    return out.astype(x.dtype), sums


def dense(ffn: Ffn, weights: Weights, x: jax.Array, valid: jax.Array) -> Sums:
    """The sums over the outputs of every expert for all valid tokens: E/K times the work."""
    rows = min(DENSE_BLOCK, x.shape[0])
    padding = -x.shape[0] % rows
    blocks = (jnp.pad(x, ((0, padding), (0, 0))).reshape(-1, rows, x.shape[1]),
              jnp.pad(valid, (0, padding)).reshape(-1, rows))

    def block(total, part):
        x, valid = part
        y = jax.lax.map(lambda w: ffn(w, x), weights).astype(jnp.float32)
        y = jnp.where(valid[None, :, None], y, 0.0)
        unit = y / jnp.maximum(jnp.linalg.norm(y, axis=-1, keepdims=True), 1e-30)
        cosine = jnp.einsum('end,fnd->ef', unit, unit, precision=HIGHEST)
        return joined(total, {'dense_output_sum': y.sum(axis=1), 'dense_cosine': cosine}), None

    count = weights['up'].shape[0]
    start = {'dense_output_sum': jnp.zeros((count, x.shape[1]), jnp.float32),
             'dense_cosine': jnp.zeros((count, count), jnp.float32)}
    return jax.lax.scan(block, start, blocks)[0]


def _pairs(
    x: jax.Array, hidden: jax.Array, y: jax.Array, gates: jax.Array, valid: jax.Array, grams: bool
) -> tuple[Pairs, Sums]:
    """Pairs whose products are to be summed over rows, and values [M] of which the largest counts.

    x [M, D], hidden [M, F], y [M, D], gates [M], valid bool [M].
    """
    live = valid.astype(jnp.float32)
    x, h, y = (jnp.where(valid[:, None], a.astype(jnp.float32), 0.0) for a in (x, hidden, y))
    g, norm = gates * live, jnp.linalg.norm(y, axis=-1)
    one, by_gate = jnp.stack([live], axis=1), jnp.stack([live, g], axis=1)
    by_square = jnp.stack([live, g * g], axis=1)
    pairs = {
        'moments': (jnp.stack([live, g, g * g], axis=1), jnp.stack([live, norm, norm**2], axis=1)),
        'outputs': (by_gate, y), 'output_squares': (one, jnp.square(y)),
        'input_squares': (by_square, jnp.square(x)),
        'hiddens': (one, h), 'hidden_squares': (by_square, jnp.square(h)),
    }
    if grams:
        pairs |= {'input_gram': (x, x), 'hidden_gram': (h, h)}
    return pairs, {'norm_max': norm, 'element_max': jnp.abs(y).max(axis=-1)}


# Of the sums of `_pairs`, the coefficient that each name has.
SUMS = {
    'outputs': ('output_sum', 'gated_output_sum'), 'output_squares': ('output_square',),
    'input_squares': ('input_square', 'gated_input_square'),
    'hiddens': ('hidden_sum',), 'hidden_squares': ('hidden_square', 'gated_hidden_square'),
}


def _named(sums: Sums) -> Sums:
    """The summed pairs [..., A, B] by the names of `table`."""
    named = {name: sums[name] for name in ('moments', 'input_gram', 'hidden_gram') if name in sums}
    for pair, names in SUMS.items():
        named |= {name: sums[pair][..., a, :] for a, name in enumerate(names)}
    return named


def _expert(
    ffn: Ffn, w: Weights, x: jax.Array, gates: jax.Array, valid: jax.Array, grams: bool
) -> tuple[jax.Array, Sums]:
    """One expert on rows [M, D]: its outputs, and the sums over the valid rows."""
    hidden = ffn.hidden(w, x)
    y = ffns.down(w, hidden)
    pairs, tops = _pairs(x, hidden, y, gates, valid, grams)
    sums = {name: jnp.einsum('ma,mb->ab', *pair, precision=HIGHEST)
            for name, pair in pairs.items()}
    return y, _named(sums) | {name: top.max() for name, top in tops.items()}


def _all_experts(
    ffn: Ffn, weights: Weights, x: jax.Array, gates: jax.Array, sizes: jax.Array, grams: bool
) -> tuple[jax.Array, Sums]:
    """As `loop.sums` of `_expert`, by native kernels; x [S, D], gates [S], sizes int32 [E]."""
    weights = grouped_chunks.cast_to(weights, x.dtype)

    def part(mine, given):
        x, gates = given
        y, hidden, _ = grouped_chunks.evaluate(ffn, weights, x, mine)
        valid = jnp.arange(x.shape[0]) < mine.sum()
        pairs, tops = _pairs(x, hidden, y, gates, valid, grams)
        return (y, tops), pairs

    (y, tops), sums = grouped_chunks.over_chunks(
        part, (x, gates), sizes, BESIDE * weights['down'].shape[1])
    row = jnp.arange(x.shape[0], dtype=jnp.int32)
    group = jnp.searchsorted(jnp.cumsum(sizes), row, side='right')
    tops = {name: jnp.zeros(sizes.shape, jnp.float32).at[group].max(top, mode='drop')
            for name, top in tops.items()}
    return y, _named(sums) | tops


def joined(a: Sums, b: Sums) -> Sums:
    """The sums of two parts of the data."""
    return {name: reduction(name, jnp.add, jnp.maximum)(a[name], b[name]) for name in a}


def _cosines(y_NKD: jax.Array, ids: jax.Array, used: jax.Array, rows: int) -> jax.Array:
    """Cosines of the outputs of every two choices of a token, summed by pair of rows [R, R].

    ids, used [N, K].
    """
    gram = _grams(y_NKD)
    norm = jnp.sqrt(jnp.maximum(jnp.diagonal(gram, axis1=1, axis2=2), 0.0))
    norms = norm[:, :, None] * norm[:, None, :]
    both = used[:, :, None] & used[:, None, :] & (norms > 0)
    cosine = jnp.where(both, gram / jnp.where(norms > 0, norms, 1.0), 0.0)
    return pair_sums(ids, cosine, rows)


def _grams(y_NKD: jax.Array) -> jax.Array:
    """Inner products of the outputs of every two choices of a token [N, K, K]."""
    def of(y):
        return jnp.einsum('...kd,...jd->...kj', y, y, preferred_element_type=jnp.float32)

    if target.platform() != 'cpu':
        return of(y_NKD)
    # XLA:CPU copies the factors of a batched product; one after the other they take a quarter.
    return jax.lax.map(lambda raw: of(from_bits(raw, y_NKD.dtype)), as_bits(y_NKD))


def pair_sums(ids: jax.Array, values: jax.Array, rows: int) -> jax.Array:
    """values [N, K, K] of the choices ids [N, K], summed by pair of rows into [R, R]."""
    pairs = ids[:, :, None] * rows + ids[:, None, :]
    flat = jnp.zeros((rows * rows,), values.dtype).at[pairs.ravel()].add(values.ravel())
    return flat.reshape(rows, rows)
