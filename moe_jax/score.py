"""Jitted log-probabilities of tokens, the base of every evaluation.

B rows, T tokens, V vocabulary, D width. A score is the log-probability of a token given its past,
in nats. Logits exist for a block of positions at a time, never for all of them.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp

from moe_jax.config import Config
from moe_jax.inputs import checked
from moe_jax.model import Params, hidden, unembed

BLOCK = 2**25  # logits that exist at a time: 128 MB of float32


def score(
    cfg: Config, params: Params, tokens: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """Log-probability [B, T-1] float32 of tokens[:, 1:] given what stands before each.

    tokens int [B, T]; mask bool [B, T] (False: padding, scored 0) or int segments (0: padding,
    1, 2, ...: packed documents; the first token of a segment has no past and scores 0). With
    `cfg.capacity_eval` set, a score depends a little on the other rows. Raises ValueError where
    tokens do not fit the model.
    """
    return _scorer(cfg)(params, *checked(cfg, tokens, mask, 'score'))


@lru_cache(maxsize=64)
def _scorer(cfg: Config):
    @jax.jit
    def run(params, tokens, segments):
        x, _ = hidden(cfg, params, tokens, segments)
        targets = jnp.roll(tokens, -1, axis=1)  # slicing x would copy it
        log_probs = target_log_probs(cfg, params, x, targets)[0][:, :-1]
        known = (segments[:, 1:] > 0) & (segments[:, 1:] == segments[:, :-1])
        return jnp.where(known, log_probs, 0.0)

    return run


def target_log_probs(
    cfg: Config, params: Params, x: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each target, and whether it is the likeliest token (the lowest of equals).

    x [B, T, D] as `model.hidden` gives it; targets int32 [B, T] -> float32 and bool, each [B, T].
    """
    flat, wanted = x.reshape(-1, x.shape[-1]), targets.ravel()
    rows = max(1, min(len(wanted), BLOCK // cfg.vocab))
    padding = -len(wanted) % rows

    def block(part):
        x, wanted = part
        logits = unembed(cfg, params, x)
        gold = jnp.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0]
        best = jnp.argmax(logits, axis=-1).astype(wanted.dtype)
        return gold - jax.nn.logsumexp(logits, axis=-1), best == wanted

    if rows == len(wanted):
        found = block((flat, wanted))
    else:
        blocks = (jnp.pad(flat, ((0, padding), (0, 0))).reshape(-1, rows, flat.shape[-1]),
                  jnp.pad(wanted, (0, padding)).reshape(-1, rows))
        found = (part.ravel()[: len(wanted)] for part in jax.lax.map(block, blocks))
    log_probs, greedy = (part.reshape(targets.shape) for part in found)
    return log_probs, greedy
