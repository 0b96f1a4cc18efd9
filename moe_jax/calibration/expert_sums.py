"""Evaluate the chosen experts of every token, and sum what pruning methods read of them.

N tokens, D width, F hidden, E experts, R router rows, K choices per token. Only what is routed is
evaluated, once, by the same code as `experts.dropless`. Sums are float32, over one batch.

    name                shape     sum over the evaluated choices of a row, g its gate
    moments             [3, 3, R] g^a |y|^c for a, c in 0, 1, 2
    norm_max            [R]       |y|, the largest
    element_max         [R]       |y_d|, the largest
    output_sum          [R, D]    y
    output_square       [R, D]    y^2
    gated_output_sum    [R, D]    g y
    input_square        [R, D]    x^2
    gated_input_square  [R, D]    (g x)^2
    hidden_sum          [R, F]    h
    hidden_square       [R, F]    h^2
    gated_hidden_square [R, F]    (g h)^2
    output_cosine       [R, R]    cos(y_i, y_j) over tokens that chose both
    input_gram          [R, D, D] x x^T, with 'grams'
    hidden_gram         [R, F, F] h h^T, with 'grams'
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moe_jax.experts import grouped, grouped_chunks
from moe_jax.experts.evaluate import gather_rows
from moe_jax.experts.grouped import grouped_sums
from moe_jax.kernels.schedule import bits, floats
from moe_jax.layers import ffn as ffns
from moe_jax.layers.ffn import Ffn
from moe_jax.routing.routing import Routing

MAXIMA = ('norm_max', 'element_max')
HIGHEST = jax.lax.Precision.HIGHEST
BESIDE = 8  # arrays of the size of a hidden layer that its sums are made from
DENSE_BLOCK = 256  # tokens whose outputs of all experts exist at a time

Sums = dict[str, jax.Array]


class ExpertSums(NamedTuple):
    """An observer of a MoE layer (`model.moe.Observer`): `evaluate`, and with `dense` its sums."""

    grams: bool = False
    dense: bool = False

    def __call__(
        self, ffn: Ffn, weights: Mapping[str, Any], x: jax.Array, routing: Routing,
        used_NK: jax.Array, expert_of: tuple[int, ...], valid: jax.Array,
    ) -> tuple[jax.Array, Sums]:
        """Outputs y [N, D] and sums of one layer's experts on x [N, D]; valid [N]: no padding."""
        y, sums = evaluate(ffn, weights, x, routing, used_NK, expert_of, grams=self.grams)
        return y, sums | (dense(ffn, weights, x, valid) if self.dense else {})


def evaluate(
    ffn: Ffn,
    weights: Mapping[str, Any],
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
    flat = jnp.where(used, routing.ids, rows).ravel()
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    inverse = jnp.zeros_like(order).at[order].set(jnp.arange(n * k, dtype=jnp.int32))
    sizes = jnp.zeros((rows + 1,), jnp.int32).at[flat].add(1)[:rows]
    gates = jnp.where(used, routing.gates, 0.0)
    gathered = gather_rows(x, order // k, inverse.reshape(n, k))

    own = gates.ravel()[order]
    if grouped.native(ffn, weights, gathered) and expert_of == tuple(range(count)):
        y, sums = _all_experts(ffn, weights, gathered, own, sizes, grams)
    else:
        def one(w, rows, gates, valid):
            return _expert(ffn, w, rows, gates, valid, grams)

        y, sums = grouped_sums(one, _merge, weights, gathered, own, sizes,
                               jnp.where(real, table, 0))
    y_NKD = gather_rows(y, inverse, order[:, None]).reshape(n, k, -1)
    out = jnp.einsum('nkd,nk->nd', y_NKD.astype(jnp.float32), gates)
    sums['moments'] = jnp.moveaxis(sums['moments'], 0, -1)
    sums['output_cosine'] = _cosines(y_NKD, routing.ids, used, rows)
    return out.astype(x.dtype), sums


def dense(ffn: Ffn, weights: Mapping[str, Any], x: jax.Array, valid: jax.Array) -> Sums:
    """Sums over all valid tokens of what every expert would give: E/K times the work.

    dense_output_sum [E, D]: f_e(x); dense_cosine [E, E]: cos(f_i(x), f_j(x)).
    """
    rows = min(DENSE_BLOCK, x.shape[0])
    padding = -x.shape[0] % rows
    blocks = (jnp.pad(x, ((0, padding), (0, 0))).reshape(-1, rows, x.shape[1]),
              jnp.pad(valid, (0, padding)).reshape(-1, rows))

    def block(found, part):
        x, valid = part
        y = jax.lax.map(lambda w: ffn(w, x), weights).astype(jnp.float32)
        y = jnp.where(valid[None, :, None], y, 0.0)
        unit = y / jnp.maximum(jnp.linalg.norm(y, axis=-1, keepdims=True), 1e-30)
        cosine = jnp.einsum('end,fnd->ef', unit, unit, precision=HIGHEST)
        return _merge(found, {'dense_output_sum': y.sum(axis=1), 'dense_cosine': cosine}), None

    count = weights['up'].shape[0]
    start = {'dense_output_sum': jnp.zeros((count, x.shape[1]), jnp.float32),
             'dense_cosine': jnp.zeros((count, count), jnp.float32)}
    return jax.lax.scan(block, start, blocks)[0]


def _pairs(x, hidden, y, gates, valid, grams):
    """What to sum over rows [M]: pairs of coefficients [M, A] and of values [M, B], float32."""
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


def _named(sums):
    """The sums of `_pairs` [..., A, B] by their own names."""
    found = {name: sums[name] for name in ('moments', 'input_gram', 'hidden_gram') if name in sums}
    for pair, names in SUMS.items():
        found |= {name: sums[pair][..., a, :] for a, name in enumerate(names)}
    return found


def _expert(ffn, w, x, gates, valid, grams):
    """One expert on rows [M, D]: its outputs, and the sums over the valid rows."""
    hidden = ffn.hidden(w, x)
    y = ffns.down(w, hidden)
    pairs, tops = _pairs(x, hidden, y, gates, valid, grams)
    sums = {name: jnp.einsum('ma,mb->ab', *pair, precision=HIGHEST)
            for name, pair in pairs.items()}
    return y, _named(sums) | {name: top.max() for name, top in tops.items()}


def _all_experts(ffn, weights, x, gates, sizes, grams):
    """As `grouped_sums` of `_expert`, by compiled products."""
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


def _merge(a: Sums, b: Sums) -> Sums:
    return {name: (jnp.maximum if name in MAXIMA else jnp.add)(a[name], b[name]) for name in a}


def _cosines(y_NKD, ids, used, rows):
    """Cosines of the outputs of every two choices of a token, summed by pair of rows [R, R]."""
    gram = _grams(y_NKD)
    norm = jnp.sqrt(jnp.maximum(jnp.diagonal(gram, axis1=1, axis2=2), 0.0))
    norms = norm[:, :, None] * norm[:, None, :]
    both = used[:, :, None] & used[:, None, :] & (norms > 0)
    cosine = jnp.where(both, gram / jnp.where(norms > 0, norms, 1.0), 0.0)
    return pair_sums(ids, cosine, rows)


def _grams(y_NKD):
    """Inner products of the outputs of every two choices of a token [N, K, K]."""
    def of(y):
        return jnp.einsum('...kd,...jd->...kj', y, y, preferred_element_type=jnp.float32)

    if jax.default_backend() != 'cpu':
        return of(y_NKD)
    # XLA:CPU copies the factors of a batched product; one after the other they take a quarter.
    return jax.lax.map(lambda raw: of(floats(raw, y_NKD.dtype)), bits(y_NKD))


def pair_sums(ids: jax.Array, values: jax.Array, rows: int) -> jax.Array:
    """values [N, K, K] of the choices ids [N, K], summed by pair of rows into [R, R]."""
    pairs = ids[:, :, None] * rows + ids[:, None, :]
    flat = jnp.zeros((rows * rows,), values.dtype).at[pairs.ravel()].add(values.ravel())
    return flat.reshape(rows, rows)
