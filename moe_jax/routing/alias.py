"""Router rows that share an expert, or stand for a constant."""

import jax
import jax.numpy as jnp

from moe_jax.routing.routing import Routing


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
