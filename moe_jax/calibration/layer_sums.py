"""The statistics of one MoE layer over one batch, on the device; what they are: `stats`.

N tokens, R router rows, K choices per token, D width. Counts are int32, sums float32.
"""

import math

import jax
import jax.numpy as jnp

from moe_jax.calibration.expert_sums import pair_sums
from moe_jax.calibration.table import BINS
from moe_jax.model.choices import Record

Arrays = dict[str, jax.Array]


def layer_sums(record: Record, cosine_N: jax.Array, valid_N: jax.Array) -> Arrays:
    """Every count, sum and maximum of a layer's record."""
    rows, topk = record.logits.shape[-1], record.ids.shape[-1]
    live = valid_N.astype(jnp.float32)
    valid = jnp.broadcast_to(valid_N[:, None], record.ids.shape)
    z, p = record.logits * live[:, None], record.probs * live[:, None]
    chosen = jnp.take_along_axis(p, record.ids, axis=-1)
    gates = record.gates * live[:, None]
    entropy = -jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0).sum(axis=-1)
    both = (valid[:, :, None] & valid[:, None, :]).astype(jnp.int32)
    share = gates / jnp.maximum(gates.max(axis=-1, keepdims=True), 1e-30)
    first = jnp.arange(topk)[None] == 0
    counts = _tally(record.ids, (valid, valid & first, valid & ~record.kept), rows)
    sums = _tally(record.ids, (gates, chosen, jnp.where(first, gates, 0.0)), rows)
    return {
        'tokens': valid_N.sum(dtype=jnp.int32),
        **dict(zip(('count', 'count_top1', 'dropped'), counts, strict=True)),
        'together': pair_sums(record.ids, both, rows),
        'entropy_hist': _histogram(entropy / max(math.log(rows), 1e-30), valid_N),
        'ratio_hist': jnp.stack([_histogram(share[:, k], valid_N) for k in range(1, topk)])
        if topk > 1 else jnp.zeros((0, BINS), jnp.int32),
        **dict(zip(('gate_sum', 'chosen_prob_sum', 'top1_gate_sum'), sums, strict=True)),
        'prob_sum': p.sum(axis=0),
        'logit_sum': z.sum(axis=0),
        'logit_gram': _gram(z),
        'prob_gram': _gram(p),
        'input_sum': (record.inputs.astype(jnp.float32) * live[:, None]).sum(axis=0),
        'entropy_sum': entropy.sum(),
        'stream_cosine': (cosine_N * live).sum(),
        **record.sums,
    }


def sampled(record: Record, pick: jax.Array) -> Arrays:
    """Inputs, logits and gates of the tokens `pick` [C] (out of range: zeros)."""
    rows = record.logits.shape[-1]
    ids, gates, logits, inputs = (
        a.at[pick].get(mode='fill', fill_value=0)
        for a in (record.ids, record.gates, record.logits, record.inputs)
    )
    dense = jnp.einsum('ck,ckr->cr', gates, jax.nn.one_hot(ids, rows, dtype=jnp.float32),
                       precision=jax.lax.Precision.HIGHEST)
    return {'sample_input': inputs.astype(jnp.float32), 'sample_logits': logits,
            'sample_gates': dense}


def _tally(ids: jax.Array, values: tuple[jax.Array, ...], rows: int) -> jax.Array:
    """Sums by row of several values [N, K] of the choices ids [N, K], [values, R]; flags as int32.

    One scatter for all: each is a loop of its own to the compiler.
    """
    stacked = jnp.stack([v.ravel() for v in values], axis=-1)
    stacked = stacked.astype(jnp.int32) if stacked.dtype == jnp.bool_ else stacked
    return jnp.zeros((rows, len(values)), stacked.dtype).at[ids.ravel()].add(stacked).T


def _histogram(values: jax.Array, valid: jax.Array) -> jax.Array:
    """Counts of values in BINS equal bins of [0, 1]; what lies outside falls into the end bins."""
    bins = jnp.clip((values * BINS).astype(jnp.int32), 0, BINS - 1)
    return jnp.zeros((BINS,), jnp.int32).at[bins].add(valid.astype(jnp.int32))


def _gram(z: jax.Array) -> jax.Array:
    return jnp.einsum('nr,ns->rs', z, z, precision=jax.lax.Precision.HIGHEST)
