"""Which experts a token uses and with what weight, for every gate convention; load losses.

N tokens, D width, R router rows, K experts per token. Everything here is float32, whatever the
model's compute dtype. A routing is a value: how the experts are then evaluated is `experts.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Routing(NamedTuple):
    """ids [N, K] router rows by falling probability, gates [N, K], logits and probs [N, R]."""

    ids: jax.Array
    gates: jax.Array
    logits: jax.Array
    probs: jax.Array


def _raw(chosen_NK: jax.Array) -> jax.Array:
    return chosen_NK


def _renormalised(chosen_NK: jax.Array) -> jax.Array:
    return chosen_NK / chosen_NK.sum(axis=-1, keepdims=True)


GATE: dict[str, Callable[[jax.Array], jax.Array]] = {
    'softmax_topk': _raw,
    'softmax_topk_renorm': _renormalised,
}


def route(
    x_ND: jax.Array,
    kernel_RD: jax.Array,
    *,
    topk: int,
    gate: str,
    jitter: float = 0.0,
    key: jax.Array | None = None,
) -> Routing:
    """Choose the `topk` most probable router rows of each token; ties go to the lower row.

    logits = x kernel^T; probs = softmax(logits); gates are the chosen probabilities, raw (Switch
    when topk=1; Fedus et al. 2021, section 2.1) or renormalised over the chosen. With `jitter` eps
    and a key, the router's input is multiplied by uniform(1-eps, 1+eps) noise (ibid., section 2.4).
    """
    x = x_ND.astype(jnp.float32)
    if jitter and key is not None:
        x = x * jax.random.uniform(key, x.shape, jnp.float32, 1.0 - jitter, 1.0 + jitter)
    logits = jnp.einsum(
        'nd,rd->nr', x, kernel_RD.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    probs = jax.nn.softmax(logits, axis=-1)
    chosen, ids = jax.lax.top_k(probs, topk)
    return Routing(ids.astype(jnp.int32), GATE[gate](chosen), logits, probs)


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
    routing: Routing, valid_N: jax.Array, alias: tuple[int, ...] | None, experts: int
) -> tuple[jax.Array, jax.Array]:
    """Expert ids [N, K] and gates [N, K] of a routing; unused places get the id `experts`.

    Unused are padding tokens and, where several router rows share an expert (alias merges), every
    repeat of an expert in one token: its gate is added to the first, so that an expert is evaluated
    once per token and its mass is kept.
    """
    if alias is None:
        ids, gates = routing.ids, routing.gates
    else:
        ids, same = _shared(routing.ids, alias)
        earlier = jnp.tril(jnp.ones(same.shape[1:], bool), -1)[None]
        repeat = jnp.any(same & earlier, axis=-1)
        gates = jnp.where(repeat, 0.0, jnp.einsum('nkj,nj->nk', same.astype(jnp.float32),
                                                  routing.gates))
        ids = jnp.where(repeat, experts, ids)
    used = valid_N[:, None]
    return jnp.where(used, ids, experts), jnp.where(used, gates, 0.0)


def served(routing: Routing, kept_NK: jax.Array, alias: tuple[int, ...] | None) -> jax.Array:
    """Which choices of router rows were evaluated, bool [N, K], from what the experts kept.

    A repeat of an expert that `to_experts` added to an earlier choice shares that one's fate.
    """
    if alias is None:
        return kept_NK
    _, same = _shared(routing.ids, alias)
    return jnp.any(same & kept_NK[:, None, :], axis=-1)


def _shared(ids_NK: jax.Array, alias: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The expert of each choice [N, K], and which choices of a token share one [N, K, K]."""
    ids = jnp.asarray(alias, jnp.int32)[ids_NK]
    return ids, ids[:, :, None] == ids[:, None, :]
