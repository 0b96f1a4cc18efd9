"""Jitted log-probabilities of tokens, the base of every evaluation.

B rows, T tokens. A score is the log-probability of a token given its past, in nats.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp

from moe_jax.config import Config
from moe_jax.inputs import checked
from moe_jax.model import Params, forward


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
        logits, _ = forward(cfg, params, tokens, segments)
        return token_log_probs(logits, tokens, segments)

    return run


def token_log_probs(logits: jax.Array, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    """log softmax(logits[:, :-1])[tokens[:, 1:]], 0 where a token has no past in its segment.

    logits [B, T, V] float32; tokens, segments int32 [B, T] -> [B, T-1] float32.
    """
    targets = jnp.roll(tokens, -1, axis=1)  # slicing the logits would copy them
    gold = jnp.take_along_axis(logits, targets[:, :, None], axis=-1)[:, :, 0]
    log_probs = (gold - jax.nn.logsumexp(logits, axis=-1))[:, :-1]
    known = (segments[:, 1:] > 0) & (segments[:, 1:] == segments[:, :-1])
    return jnp.where(known, log_probs, 0.0)
