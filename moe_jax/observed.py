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
from typing import Any

import jax
import jax.numpy as jnp

from moe_jax import ffn as ffns
from moe_jax.experts import gather_rows
from moe_jax.ffn import Ffn
from moe_jax.grouped import grouped_sums
from moe_jax.routing import Routing

MAXIMA = ('norm_max', 'element_max')
HIGHEST = jax.lax.Precision.HIGHEST
DENSE_BLOCK = 256  # tokens whose outputs of all experts exist at a time

Sums = dict[str, jax.Array]


def evaluate(
    ffn: Ffn,
    weights: Mapping[str, Any],
    x: jax.Array,
    routing: Routing,
    used_NK: jax.Array,
    expert_of: tuple[int, ...],
    watch: tuple[str, ...] = (),
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

    def one(w, rows, gates, valid):
        return _expert(ffn, w, rows, gates, valid, 'grams' in watch)

    y, sums = grouped_sums(one, _merge, weights, gathered, gates.ravel()[order], sizes,
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


def _expert(ffn, w, x, gates, valid, grams):
    """One expert on rows [M, D]: its outputs, and the sums over the valid rows."""
    hidden = ffn.hidden(w, x)
    y = ffns.down(w, hidden)
    live = valid.astype(jnp.float32)
    x32, h32, y32 = (jnp.where(valid[:, None], a.astype(jnp.float32), 0.0) for a in (x, hidden, y))
    g = gates * live
    norm = jnp.linalg.norm(y32, axis=-1)
    powers = (jnp.stack([live, g, g * g]), jnp.stack([live, norm, norm * norm]))
    inputs, hiddens, outputs = jnp.square(x32), jnp.square(h32), jnp.square(y32)
    sums = {
        'moments': jnp.einsum('am,cm->ac', *powers, precision=HIGHEST),
        'norm_max': norm.max(),
        'element_max': jnp.abs(y32).max(),
        'output_sum': y32.sum(axis=0),
        'output_square': outputs.sum(axis=0),
        'gated_output_sum': (g[:, None] * y32).sum(axis=0),
        'input_square': inputs.sum(axis=0),
        'gated_input_square': (jnp.square(g)[:, None] * inputs).sum(axis=0),
        'hidden_sum': h32.sum(axis=0),
        'hidden_square': hiddens.sum(axis=0),
        'gated_hidden_square': (jnp.square(g)[:, None] * hiddens).sum(axis=0),
    }
    if grams:
        sums['input_gram'] = jnp.einsum('md,mc->dc', x32, x32, precision=HIGHEST)
        sums['hidden_gram'] = jnp.einsum('mf,mg->fg', h32, h32, precision=HIGHEST)
    return y, sums


def _merge(a: Sums, b: Sums) -> Sums:
    return {name: (jnp.maximum if name in MAXIMA else jnp.add)(a[name], b[name]) for name in a}


def _cosines(y_NKD, ids, used, rows):
    """Cosines of the outputs of every two choices of a token, summed by pair of rows [R, R]."""
    gram = jnp.einsum('nkd,njd->nkj', y_NKD, y_NKD, preferred_element_type=jnp.float32)
    norm = jnp.sqrt(jnp.maximum(jnp.diagonal(gram, axis1=1, axis2=2), 0.0))
    norms = norm[:, :, None] * norm[:, None, :]
    both = used[:, :, None] & used[:, None, :] & (norms > 0)
    cosine = jnp.where(both, gram / jnp.where(norms > 0, norms, 1.0), 0.0)
    return pair_sums(ids, cosine, rows)


def pair_sums(ids: jax.Array, values: jax.Array, rows: int) -> jax.Array:
    """values [N, K, K] of the choices ids [N, K], summed by pair of rows into [R, R]."""
    pairs = ids[:, :, None] * rows + ids[:, None, :]
    flat = jnp.zeros((rows * rows,), values.dtype).at[pairs.ravel()].add(values.ravel())
    return flat.reshape(rows, rows)
