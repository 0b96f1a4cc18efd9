"""Gates: how router logits become scores, choices and weights of choices."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Gate(NamedTuple):
    """One gate convention; R router rows, K choices."""

    words: str  # for tables
    scores: Callable[[jax.Array], jax.Array]  # logits [N, R] -> what selection ranks [N, R]
    weights: Callable[[jax.Array, jax.Array], jax.Array]  # chosen scores, logits [N, K] -> gates
    shares: Callable[[jax.Array], jax.Array]  # logits [N, R] -> scores as shares of one [N, R]
    terms: Callable[[jax.Array], jax.Array]  # logits [N, R] -> numbers that gates are in ratio to
    group_best: int  # best scores of a router group whose sum ranks the group
    renormalized: bool  # gates sum to one: they do not depend on rows that were not chosen
    softmax: bool  # scores are a softmax over all rows: they grow as rows are deleted

    @property
    def rescales(self) -> bool:
        """Whether deleting rows multiplies survivors' gates by 1/(1 - the rows' share)."""
        return self.softmax and not self.renormalized


def _softmax(logits: jax.Array) -> jax.Array:
    return jax.nn.softmax(logits, axis=-1)


def _exponentials(logits: jax.Array) -> jax.Array:
    return jnp.exp(logits - logits.max(axis=-1, keepdims=True))


def _sigmoid_shares(logits: jax.Array) -> jax.Array:
    scores = jax.nn.sigmoid(logits)
    return scores / (scores.sum(axis=-1, keepdims=True) + 1e-20)


def _raw(scores: jax.Array, logits: jax.Array) -> jax.Array:
    return scores


def _renormalized(scores: jax.Array, logits: jax.Array) -> jax.Array:
    # The tiny number keeps a token finite whose every chosen sigmoid has vanished (DeepSeek-V3).
    return scores / (scores.sum(axis=-1, keepdims=True) + 1e-20)


def _softmax_of_chosen(scores: jax.Array, logits: jax.Array) -> jax.Array:
    return jax.nn.softmax(logits, axis=-1)


def _logits(logits: jax.Array) -> jax.Array:
    return logits


def _over_rows(words: str, weights: Callable[..., jax.Array], renormalized: bool) -> Gate:
    return Gate(words, _softmax, weights, _softmax, _exponentials, 1, renormalized, True)


def _sigmoid(words: str, weights: Callable[..., jax.Array], renormalized: bool) -> Gate:
    return Gate(words, jax.nn.sigmoid, weights, _sigmoid_shares, jax.nn.sigmoid, 2, renormalized,
                False)


GATE: dict[str, Gate] = {
    'softmax_topk': _over_rows('softmax, then top-k, raw', _raw, False),
    'softmax_topk_renorm': _over_rows('softmax, then top-k, renormalized', _renormalized, True),
    'topk_softmax': Gate('top-k, then softmax', _logits, _softmax_of_chosen, _softmax,
                         _exponentials, 1, True, False),
    'sigmoid_topk': _sigmoid('sigmoid, raw', _raw, False),
    'sigmoid_topk_renorm': _sigmoid('sigmoid, renormalized', _renormalized, True),
}
