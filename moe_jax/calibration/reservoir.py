"""A uniform sample of tokens that does not depend on batches, order or shards.

Every token has a key, a hash of what stands before it in its segment and of the segment as a whole;
the sample is the S tokens of smallest key. Two samples merge to the sample of both by keeping the S
smallest keys ("bottom-k" sampling, Cohen and Kaplan 2007). Tokens with equal keys are the same
place of the same text and have the same activations (without a capacity).
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.base import processes
from moe_jax.calibration.table import Sums
from moe_jax.config import Config
from moe_jax.layers import ffn as ffns
from moe_jax.layers.ffn import Ffn, Weights

Outputs = Literal['none', 'gram', 'all']
CHUNK = 2**24  # numbers of expert outputs that exist at a time: 64 MB of float32
PRIME, FIRST, SECOND, THIRD = (np.uint64(n) for n in (
    0x100000001B3, 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def keys(tokens: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Key of every token, uint64 [B, T]; padding (segment 0) has the largest."""
    length = tokens.shape[1]
    prefix = np.zeros(tokens.shape, np.uint64)
    running = np.zeros(len(tokens), np.uint64)
    for t in range(length):
        new = np.ones(len(tokens), bool) if t == 0 else segments[:, t] != segments[:, t - 1]
        running = np.where(new, FIRST, running) * PRIME ^ (tokens[:, t].astype(np.uint64) + 1)
        prefix[:, t] = running
    whole = np.zeros_like(running)
    total = np.zeros_like(prefix)
    for t in reversed(range(length)):
        last = np.ones(len(tokens), bool) if t == length - 1 else (
            segments[:, t] != segments[:, t + 1])
        whole = np.where(last, prefix[:, t], whole)
        total[:, t] = whole
    return np.where(segments > 0, _mixed(prefix ^ _mixed(total)), np.uint64(2**64 - 1))


def pick(keys: np.ndarray, valid: np.ndarray, size: int, below: np.uint64) -> np.ndarray:
    """Indices of at most `size` valid tokens of smallest key, all smaller than `below`."""
    index = np.flatnonzero(valid & (keys < below))
    return index[np.argsort(keys[index], kind='stable')[:size]]


def finish(
    cfg: Config,
    experts: Weights,
    layer: Sums,
    outputs: Outputs,
    target: Sums | None = None,
) -> Sums:
    """A layer's statistics with what all its experts give on the sampled tokens.

    'gram': sample_gram, sample_cross, sample_square; 'all': sample_output too; 'none': nothing.
    `target`, if given, has the sampled inputs and gates, token by token, of the layer whose routed
    output is to be approximated (with its own experts under 'experts').
    """
    if outputs == 'none':
        return layer
    size, rows = layer['sample_gates'].shape
    step = max(1, min(size, CHUNK // (rows * cfg.width)))
    goal = {'experts': experts, **layer} if target is None else target
    parts = []
    for start in range(0, size, step):
        part = slice(start, min(size, start + step))
        x, goal_x, goal_g = (_padded(a[part], step) for a in (
            layer['sample_input'], goal['sample_input'], goal['sample_gates']))
        y = _routed(ffns.of(cfg), jnp.dtype(cfg.dtype), goal['experts'], goal_x, goal_g)
        products = _products(ffns.of(cfg), jnp.dtype(cfg.dtype), experts, x, y, outputs == 'all')
        parts.append([a[: part.stop - start] for a in processes.fetch(products)])
    names = ('sample_gram', 'sample_cross', 'sample_square', 'sample_output')
    return layer | {name: np.concatenate(column) for name, column in zip(
        names, zip(*parts, strict=True), strict=False)}


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    return np.pad(rows, ((0, size - len(rows)), (0, 0)))


def _outputs(ffn: Ffn, dtype: np.dtype, experts: Weights, x: jax.Array) -> jax.Array:
    """Every expert on every token, float32 [S, E, D]."""
    y = jax.lax.map(lambda w: ffn(w, x.astype(dtype)), experts)
    return jnp.moveaxis(y.astype(jnp.float32), 0, 1)


@partial(jax.jit, static_argnums=(0, 1))
def _routed(
    ffn: Ffn, dtype: np.dtype, experts: Weights, x: jax.Array, gates: jax.Array
) -> jax.Array:
    """The outputs mixed by gates [S, E], float32 [S, D]."""
    return jnp.einsum('sr,srd->sd', gates, _outputs(ffn, dtype, experts, x),
                      precision=jax.lax.Precision.HIGHEST)


@partial(jax.jit, static_argnums=(0, 1, 5))
def _products(
    ffn: Ffn, dtype: np.dtype, experts: Weights, x: jax.Array, goal: jax.Array, whole: bool
) -> tuple[jax.Array, ...]:
    """<y_i, y_j> [S, E, E], <y_i, goal> [S, E], |goal|^2 [S], and where `whole` y [S, E, D]."""
    y = _outputs(ffn, dtype, experts, x)
    exact = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    gram, cross = exact('sid,sjd->sij', y, y), exact('sid,sd->si', y, goal)
    products = (gram, cross, exact('sd,sd->s', goal, goal))
    return (*products, y) if whole else products


def _mixed(x: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele et al. 2014): every bit of the result depends on every bit of x."""
    x = x + FIRST
    x = (x ^ (x >> np.uint64(30))) * SECOND
    x = (x ^ (x >> np.uint64(27))) * THIRD
    return x ^ (x >> np.uint64(31))
