"""Which experts a token uses and with what weight, for every gate convention; load losses.

N tokens, D width, R router rows, K experts per token. Everything here is float32, whatever the
model's compute dtype. A routing is a value: how the experts are then evaluated is `experts.py`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe_jax.routing.gates import GATE


class Routing(NamedTuple):
    """ids [N, K] router rows, best first, gates [N, K], logits and probs (shares of 1) [N, R]."""

    ids: jax.Array
    gates: jax.Array
    logits: jax.Array
    probs: jax.Array


def route(
    x_ND: jax.Array,
    router: Mapping[str, jax.Array],
    *,
    topk: int,
    gate: str,
    scale: float = 1.0,
    groups: int = 1,
    groups_used: int = 1,
    closed: Sequence[bool] | None = None,
    jitter: float = 0.0,
    key: jax.Array | None = None,
) -> Routing:
    """Choose the `topk` best router rows of each token; ties go to the lower row.

    router: kernel [R, D]; bias [R], if any, is added to the logits; correction [R], if any, as in
    `choose`. logits = x kernel^T + bias. With `jitter` eps and a key, the router's input is
    multiplied by uniform(1-eps, 1+eps) noise (Fedus et al. 2021, section 2.4).
    """
    x = x_ND.astype(jnp.float32)
    if jitter and key is not None:
        x = x * jax.random.uniform(key, x.shape, jnp.float32, 1.0 - jitter, 1.0 + jitter)
    kernel = router['kernel'].astype(jnp.float32)
    logits = jnp.einsum('nd,rd->nr', x, kernel, precision=jax.lax.Precision.HIGHEST)
    if 'bias' in router:
        logits = logits + router['bias'].astype(jnp.float32)[None]
    return choose(logits, router.get('correction'), topk=topk, gate=gate, scale=scale,
                  groups=groups, groups_used=groups_used, closed=closed)


def choose(
    logits: jax.Array,
    correction: jax.Array | None = None,
    *,
    topk: int,
    gate: str,
    scale: float = 1.0,
    groups: int = 1,
    groups_used: int = 1,
    closed: Sequence[bool] | None = None,
) -> Routing:
    """The routing of router logits [N, R].

    correction [R] is added to the scores that rank the rows, not to the gates (DeepSeek-V3, section
    2.1.2). Scores and gates by `GATE[gate]`, gates times `scale`. With `groups`, rows fall into
    equal groups in their order and only the groups_used best take part (DeepSeek-V2, section
    2.2.2). Rows marked in `closed` [R] count in a softmax and are never chosen. probs: the scores
    as shares of one, softmax(logits) or sigmoids over their sum.
    """
    rule = GATE[gate]
    scores = rule.scores(logits)
    ranked = scores
    if correction is not None:
        ranked = ranked + correction.astype(jnp.float32)[None]
    if closed is not None:  # added, never multiplied: a negative score would change its sign
        ranked = ranked + jnp.where(jnp.asarray(closed), -jnp.inf, 0.0)[None]
    if groups > 1:
        ranked = _in_best_groups(ranked, groups, groups_used, rule.group_best)
    ids = jax.lax.top_k(ranked, topk)[1].astype(jnp.int32)
    chosen = (jnp.take_along_axis(values, ids, axis=-1) for values in (scores, logits))
    gates = rule.weights(*chosen)
    return Routing(ids, gates * scale if scale != 1.0 else gates, logits, _shares(gate, logits))


def _in_best_groups(ranked: jax.Array, groups: int, used: int, best: int) -> jax.Array:
    """Scores [N, R], with -inf outside the `used` groups whose `best` largest sum to the most."""
    grouped = ranked.reshape(ranked.shape[0], groups, -1)
    worth = jax.lax.top_k(grouped, best)[0].sum(axis=-1)
    chosen = jax.lax.top_k(worth, used)[1]
    mask = jax.nn.one_hot(chosen, groups, dtype=jnp.bool_).any(axis=1)
    return jnp.where(mask[:, :, None], grouped, -jnp.inf).reshape(ranked.shape)


def _shares(gate: str, logits: jax.Array) -> jax.Array:
    if not gate.startswith('sigmoid'):
        return jax.nn.softmax(logits, axis=-1)
    scores = jax.nn.sigmoid(logits)
    return scores / (scores.sum(axis=-1, keepdims=True) + 1e-20)
