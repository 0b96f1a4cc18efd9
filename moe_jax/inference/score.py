"""Jitted log-probabilities of tokens, the base of every evaluation.

B rows, T tokens, V vocabulary, D width. A score is the log-probability of a token given its past,
in nats. Logits exist for a block of positions at a time, never for all of them.
"""

import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.base import sharding
from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.layers.positions import has_past
from moe_jax.model.decoder import hidden, unembed
from moe_jax.model.inputs import checked

BLOCK = 2**25  # logits that exist at a time: 128 MB of float32


def score(
    cfg: Config, params: Params, tokens: jax.Array | np.ndarray,
    mask: jax.Array | np.ndarray | None = None,
) -> jax.Array:
    """Log-probability [B, T-1] float32 of tokens[:, 1:] given what stands before each.

    tokens int [B, T]; mask bool [B, T] (False: padding, scored 0) or int segments (0: padding,
    1, 2, ...: packed documents; the first token of a segment has no past and scores 0). With
    `cfg.capacity_eval` set, a score depends a little on the other rows. Raises ValueError where
    tokens do not fit the model; warns where its router lets a token see later ones.
    """
    if not cfg.traits.causal:
        warnings.warn(f'router design {cfg.router.design!r}: what a token gets depends on later '
                      'tokens, so these log-probabilities are not those of a causal model',
                      stacklevel=2)
    return _scorer(cfg)(params, *checked(cfg, tokens, mask, 'score'))


@lru_cache(maxsize=64)
def _scorer(cfg: Config):
    @sharding.jit
    def run(params, tokens, segments):
        x, _ = hidden(cfg, params, tokens, segments)
        targets = jnp.roll(tokens, -1, axis=1)  # slicing x would copy it
        log_probs = target_log_probs(cfg, params, x, targets)[0][:, :-1]
        known = has_past(segments)
        return sharding.replicate(jnp.where(known, log_probs, 0.0))

    return run


def target_log_probs(
    cfg: Config, params: Params, x: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target, and whether it is the likeliest token (the lowest of equals).

    x [B, T, D] as `model.hidden` gives it; targets int32 [B, T] -> float32 and bool, each [B, T].
    """
    def block(x, wanted):
        logits = unembed(cfg, params, x)
        gold = jnp.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0]
        best = jnp.argmax(logits, axis=-1).astype(wanted.dtype)
        return gold - jax.nn.logsumexp(logits, axis=-1), best == wanted

    return by_blocks(block, (x, targets), max(1, BLOCK // cfg.vocab))


def by_blocks(run: Callable[..., Any], arrays: tuple[jax.Array, ...], rows: int) -> Any:
    """run on `rows` tokens at a time: arrays [B, T, ...] to a tree of [M] each, given as [B, T].

    The last block is filled with zeros, whose results are thrown away.
    """
    shape = arrays[0].shape[:2]
    count = math.prod(shape)
    rows = min(rows, count)
    flat = [a.reshape(count, *a.shape[2:]) for a in arrays]
    if rows == count:
        scores = run(*flat)
    else:
        padding = -count % rows
        blocks = [jnp.pad(a, ((0, padding), *((0, 0),) * (a.ndim - 1))).reshape(
            -1, rows, *a.shape[1:]) for a in flat]
        scores = jax.lax.map(lambda part: run(*part), tuple(blocks))
        scores = jax.tree.map(lambda a: a.ravel()[:count], scores)
    return jax.tree.map(lambda a: a.reshape(shape), scores)
