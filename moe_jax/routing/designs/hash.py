"""Hash routing: the token's id decides its experts, for ever (Roller et al. 2021).

N tokens, R router rows, K experts per token.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp

from moe_jax.base.checks import integer
from moe_jax.routing.design import Leaf, Traits
from moe_jax.routing.routing import LayerRows, RouterInput, Routing

SEEDS = 2**31


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hash:
    """Each token id goes to the K rows of its largest hash(seed, id, row), with gates 1/K.

    Nothing is learned: the design is the case of MaskMoE in which an id sees K experts (Su et al.
    2024). Rows stay when experts are dropped, since which row an id has depends on their number; a
    dropped expert's rows go to one that stays (an alias), so that its ids alone move.
    """

    design: ClassVar[str] = 'hash'
    paper: ClassVar[str] = 'Roller et al. 2021, arXiv 2106.04426'

    topk: int = 1  # K
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, 'topk', integer('Config.router.topk', self.topk, 1, 2**16))
        object.__setattr__(self, 'seed', integer('Config.router.seed', self.seed, 0, SEEDS))

    @property
    def traits(self) -> Traits:
        return Traits(self.topk, clamp=True, sliceable=False, renormalized=True,
                      reads=frozenset({'tokens'}))

    @property
    def coefficients(self) -> Mapping[str, float]:
        return {}

    def places(self, rows: int) -> int:
        return min(self.topk, rows)

    def among(self, rows: Sequence[int]) -> Self:
        return self

    def leaves(self, width: int, rows: int) -> Mapping[str, Leaf]:
        """No parameters."""
        return {}

    def route(
        self, leaves: Mapping[str, jax.Array], given: RouterInput, rows: LayerRows
    ) -> Routing:
        """logits: 0; probs: 1/K for the rows of the token's id.

        Raises ValueError where the token ids are unknown.
        """
        if given.tokens is None:
            raise ValueError("Config.router: design 'hash' routes by token ids, and here only the "
                             "layer's inputs are known")
        scores = hashes(given.tokens, rows.count, self.seed)
        if rows.closed is not None:
            scores = jnp.where(jnp.asarray(rows.closed)[None], 0, scores)
        ids = jax.lax.top_k(scores, rows.topk)[1].astype(jnp.int32)
        gates = jnp.full(ids.shape, 1.0 / rows.topk, jnp.float32)
        probs = jax.nn.one_hot(ids, rows.count, dtype=jnp.float32).sum(axis=1) / rows.topk
        return Routing(ids, gates, jnp.zeros(probs.shape, jnp.float32), probs)

    def losses(self, routing: Routing, valid_N: jax.Array) -> Mapping[str, jax.Array]:
        return {}

    def replace(self, **fields: Any) -> Self:
        return dataclasses.replace(self, **fields)


ROUTER = Hash


def hashes(tokens_N: jax.Array, rows: int, seed: int) -> jax.Array:
    """A number for each id and row, uint32 [N, R]: the finaliser of MurmurHash3, twice."""
    row = jnp.arange(rows, dtype=jnp.uint32)
    word = _mixed(tokens_N.astype(jnp.uint32) * jnp.uint32(2654435761) + jnp.uint32(seed))
    return _mixed(word[:, None] ^ _mixed(row * jnp.uint32(2246822519) + jnp.uint32(1))[None])


def _mixed(word: jax.Array) -> jax.Array:
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
