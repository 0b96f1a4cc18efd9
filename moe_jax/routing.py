"""Which experts a token uses and with what weight, for every gate convention; load losses.

N tokens, D width, R router rows, K experts per token. Everything here is float32, whatever the
model's compute dtype. A routing is a value: how the experts are then evaluated is `experts.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Routing(NamedTuple):
    """ids [N, K] router rows, best first, gates [N, K], logits and probs (shares of 1) [N, R]."""

    ids: jax.Array
    gates: jax.Array
    logits: jax.Array
    probs: jax.Array


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


def balance_loss(routing: Routing, valid_N: jax.Array) -> jax.Array:
    """Switch load-balance loss of one layer over the tokens marked in valid [N]: R sum_r f_r P_r.

    f_r is the share of routed choices that went to row r, P_r the mean probability of r. Gradient
    flows through P alone (the counts are constants), so it is finite everywhere; 1 at perfect
    balance. Fedus et al. 2021, equations 4 to 6.
    """
    rows = routing.logits.shape[-1]
    weight = valid_N.astype(jnp.float32)
    total = jnp.maximum(weight.sum(), 1.0)
    share = load(routing.ids, valid_N, rows) / (total * routing.ids.shape[-1])
    mean_prob = (routing.probs * weight[:, None]).sum(axis=0) / total
    return rows * jnp.sum(jax.lax.stop_gradient(share) * mean_prob)


def z_loss(routing: Routing, valid_N: jax.Array) -> jax.Array:
    """Mean squared log-partition of the router over valid tokens (ST-MoE, equation 5)."""
    weight = valid_N.astype(jnp.float32)
    lse = jax.nn.logsumexp(routing.logits, axis=-1)
    return jnp.sum(jnp.square(lse) * weight) / jnp.maximum(weight.sum(), 1.0)


def load(ids_NK: jax.Array, valid_N: jax.Array, rows: int) -> jax.Array:
    """How many valid choices went to each router row; float32 [R]."""
    weight = jnp.broadcast_to(valid_N.astype(jnp.float32)[:, None], ids_NK.shape)
    return jnp.zeros((rows,), jnp.float32).at[ids_NK.ravel()].add(weight.ravel())


def to_experts(
    routing: Routing, used_NK: jax.Array, alias: tuple[int, ...] | None, experts: int
) -> tuple[jax.Array, jax.Array]:
    """Expert ids [N, K] and gates [N, K] of a routing; unused places get the id `experts`.

    Unused are the choices not marked in `used`, the rows of constants (ids of `experts` and above)
    and, where several router rows share an expert (alias merges), every repeat of an expert in one
    token: its gate is added to the first, so that an expert is evaluated once per token and its
    mass is kept.
    """
    gates = jnp.where(used_NK, routing.gates, 0.0)
    if alias is None:
        return jnp.where(used_NK, routing.ids, experts), gates
    ids, same = _shared(routing.ids, alias)
    same = same & used_NK[:, None, :]
    earlier = jnp.tril(jnp.ones(same.shape[1:], bool), -1)[None]
    repeat = jnp.any(same & earlier, axis=-1)
    total = jnp.einsum('nkj,nj->nk', same.astype(jnp.float32), gates)
    used = used_NK & ~repeat & (ids < experts)
    return jnp.where(used, ids, experts), jnp.where(used, total, 0.0)


def served(
    routing: Routing, kept_NK: jax.Array, alias: tuple[int, ...] | None, experts: int
) -> jax.Array:
    """Which choices of router rows were evaluated, bool [N, K], from what the experts kept.

    A repeat of an expert that `to_experts` added to an earlier choice shares that one's fate; a
    constant always has its turn.
    """
    if alias is None:
        return kept_NK
    ids, same = _shared(routing.ids, alias)
    return jnp.any(same & kept_NK[:, None, :], axis=-1) | (ids >= experts)


def constant_part(
    routing: Routing, used_NK: jax.Array, alias: tuple[int, ...], experts: int, table_JD: jax.Array
) -> jax.Array:
    """sum of gate times constant over the choices that are constants, [N, D] float32."""
    index = jnp.asarray(alias, jnp.int32)[routing.ids] - experts
    rows = table_JD.astype(jnp.float32).at[jnp.where(index < 0, table_JD.shape[0], index)].get(
        mode='fill', fill_value=0.0)
    return jnp.einsum('nk,nkd->nd', jnp.where(used_NK, routing.gates, 0.0), rows)


def _shared(ids_NK: jax.Array, alias: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The expert of each choice [N, K], and which choices of a token share one [N, K, K]."""
    ids = jnp.asarray(alias, jnp.int32)[ids_NK]
    return ids, ids[:, :, None] == ids[:, None, :]
