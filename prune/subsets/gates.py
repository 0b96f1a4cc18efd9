"""What the tokens of a reservoir would use if only a subset of the experts were left.

Letters: S tokens, R router rows (experts), K experts per token, G experts left. A subset is a mask
[R]. Its router is the rows that stay: a softmax goes over them alone, and a token uses its K best,
or all of them where fewer stay. Places of a token that remain empty have gate 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.config import Config
from moe_jax.routing.designs.top_k import choose, top_k
from moe_jax.routing.gates import GATE, Gate


class Rule(NamedTuple):
    """The gate convention of a layer, hashable: settings of its `TopK` router."""

    topk: int
    gate: Gate
    name: str  # of the gate
    scale: float
    groups: int
    groups_used: int


class Router(NamedTuple):
    """The router on the sampled tokens, prepared once for all subsets.

    logits [S, R]; correction [R] or None, as in `choose`; scores [S, R]: the gate's `terms`; order
    [R, S]: rows of each token by falling rank.
    """

    logits: jax.Array
    correction: jax.Array | None
    scores: jax.Array
    order: jax.Array


class Chosen(NamedTuple):
    """ids [K, S] and gates [K, S] of the experts used; total [S], the survivors' share of scores.

    total is 1 where gates are no softmax over survivors.
    """

    ids: jax.Array
    gates: jax.Array
    total: jax.Array


def rule_of(cfg: Config, rows: int) -> Rule:
    """The gate convention of a config in a layer of `rows` router rows."""
    router = top_k(cfg.router, 'a search over subsets of experts')
    return Rule(min(router.topk, rows), GATE[router.gate], router.gate, router.scale, router.groups,
                router.groups_used)


def router_of(logits: np.ndarray, correction: np.ndarray | None, gate: Gate) -> Router:
    """Scores and ranks of logits [S, R]; ties in rank go to the lower row."""
    z = jnp.asarray(logits, jnp.float32)
    shift = None if correction is None else jnp.asarray(correction, jnp.float32)
    ranked = z if gate.softmax else gate.scores(z)
    ranked = np.asarray(ranked if shift is None else ranked + shift[None])
    order = np.argsort(-ranked, axis=1, kind='stable').astype(np.int32).T
    return Router(z, shift, gate.terms(z), jnp.asarray(np.ascontiguousarray(order)))


def ranks_are_fixed(router: Router, rule: Rule) -> bool:
    """Whether tokens rank the survivors of every subset as they rank all rows.

    Not with router groups, nor where a correction is added to softmax shares, which grow as rows
    are deleted.
    """
    added_to_shares = router.correction is not None and rule.gate.softmax
    return rule.groups == 1 and not added_to_shares


def by_rank(router: Router, mask: jax.Array, rule: Rule, depth: jax.Array) -> Chosen:
    """The first K rows in each token's order that the mask [R] has, where `ranks_are_fixed`.

    depth: ranks to look at; R - G + K is enough. Where `total` is below 1e-30, the survivors'
    softmax has lost its digits.
    """
    ids, total = first(router, mask, rule.topk, depth), left(router, mask, rule)
    return Chosen(ids, gates(router, rule, ids, total), total)


def by_choice(router: Router, mask: jax.Array, rule: Rule, depth: jax.Array) -> Chosen:
    """The model's own choice with the rows outside the mask [R] closed, for every convention."""
    del depth
    routing = choose(
        jnp.where(mask[None], router.logits, -jnp.inf), router.correction, topk=rule.topk,
        gate=rule.name, scale=rule.scale, groups=rule.groups, groups_used=rule.groups_used,
        closed=~mask,
    )
    return Chosen(routing.ids.T, routing.gates.T, jnp.ones(len(router.logits)))


def first(router: Router, mask: jax.Array, places: int, depth: jax.Array) -> jax.Array:
    """The first rows in each token's order that the mask has, [places, S]; R where there is none.
    """
    rows, tokens = router.order.shape
    place = jnp.arange(places)[:, None]

    def look(rank: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        ids, count = found
        row = router.order[rank]
        here = mask[row]
        ids = jnp.where(here[None] & (count[None] == place), row[None], ids)
        return ids, count + here.astype(jnp.int32)

    nothing = jnp.full((places, tokens), rows, jnp.int32), jnp.zeros(tokens, jnp.int32)
    return jax.lax.fori_loop(0, depth, look, nothing)[0]


def left(router: Router, mask: jax.Array, rule: Rule) -> jax.Array:
    """Sum [S] of the scores of the rows in the mask [R]; 1 where gates are no softmax over them."""
    if not rule.gate.softmax:
        return jnp.ones(len(router.logits))
    exact = jax.lax.Precision.HIGHEST
    return jnp.dot(router.scores, mask.astype(jnp.float32), precision=exact)


def left_without(router: Router, mask: jax.Array, rule: Rule, ids: jax.Array) -> jax.Array:
    """As `left`, when each token's row ids [S] is gone too; summed anew, since it may be the most.
    """
    if not rule.gate.softmax:
        return jnp.ones(len(router.logits))
    others = mask[None] & (jnp.arange(len(mask))[None] != ids[:, None])
    return jnp.where(others, router.scores, 0.0).sum(axis=1)


def gates(router: Router, rule: Rule, ids: jax.Array, total: jax.Array) -> jax.Array:
    """Gates [K, S] of the rows ids [K, S] (R: none) when the survivors' scores sum to total [S]."""
    rows, tokens = router.order.shape
    used, token = ids < rows, jnp.arange(tokens)[None]
    row = jnp.minimum(ids, rows - 1)
    scores = jnp.where(used, router.scores[token, row] / total[None], 0.0)
    logits = jnp.where(used, router.logits[token, row], -jnp.inf)
    return rule.gate.weights(scores.T, logits.T).T * rule.scale
