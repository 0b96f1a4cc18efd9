"""Gates: how router logits become scores, choices and weights of choices."""

from collections.abc import Callable
from typing import NamedTuple

import jax


class Gate(NamedTuple):
    """One gate convention: how logits become scores, and chosen scores become gates.

    scores(logits [N, R]) -> [N, R], what selection ranks (a correction bias is added first);
    weights(chosen scores [N, K], chosen logits [N, K]) -> gates [N, K]; group_best: the number of
    a group's best scores whose sum ranks the group; renormalised: gates sum to one, so that they
    do not depend on rows that were not chosen.
    """

    scores: Callable[[jax.Array], jax.Array]
    weights: Callable[[jax.Array, jax.Array], jax.Array]
    group_best: int
    renormalised: bool


def _softmax(logits: jax.Array) -> jax.Array:
    return jax.nn.softmax(logits, axis=-1)


def _raw(scores: jax.Array, logits: jax.Array) -> jax.Array:
    return scores


def _renormalised(scores: jax.Array, logits: jax.Array) -> jax.Array:
    # The tiny number keeps a token finite whose every chosen sigmoid has vanished (DeepSeek-V3).
    return scores / (scores.sum(axis=-1, keepdims=True) + 1e-20)


def _softmax_of_chosen(scores: jax.Array, logits: jax.Array) -> jax.Array:
    return jax.nn.softmax(logits, axis=-1)


GATE: dict[str, Gate] = {
    'softmax_topk': Gate(_softmax, _raw, 1, False),
    'softmax_topk_renorm': Gate(_softmax, _renormalised, 1, True),
    'topk_softmax': Gate(lambda logits: logits, _softmax_of_chosen, 1, True),
    'sigmoid_topk': Gate(jax.nn.sigmoid, _raw, 2, False),
    'sigmoid_topk_renorm': Gate(jax.nn.sigmoid, _renormalised, 2, True),
}
