"""Expert choice: experts choose tokens, each the same number of them (Zhou et al. 2022).

N tokens, D width, R router rows, C places of a row.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp

from moe_jax.base.checks import choice, number
from moe_jax.routing.close import never_chosen
from moe_jax.routing.design import Leaf, Reads, Traits
from moe_jax.routing.designs.top_k import logits_of
from moe_jax.routing.routing import LayerRows, RouterInput, Routing, Slots, as_choices


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertChoice:
    """Row r takes the C = ceil(capacity n / R) tokens of the n at hand with the largest S[t, r].

    S = softmax over rows of x kernel^T; the gates are those S. Loads are equal by construction, so
    there is no balance loss, and counts of choices tell nothing of an expert. A token that no row
    takes passes by its residual alone. What a token gets depends on later tokens: the design is for
    training and encoders, and its likelihoods are not causal. Ties go to the earlier token.
    """

    design: ClassVar[str] = 'expert_choice'
    paper: ClassVar[str] = 'Zhou et al. 2022, arXiv 2202.09368'

    capacity: float = 2.0  # experts that a token has on average
    over: Literal['row', 'batch'] = 'row'  # tokens that compete: of a row of the batch, or of all
    noise: float = 0.0  # normal noise on the logits in training, times 1/R (V-MoE)

    def __post_init__(self) -> None:
        choice('Config.router.over', self.over, ('row', 'batch'))
        for name in ('capacity', 'noise'):
            value = number(f'Config.router.{name}', getattr(self, name))
            object.__setattr__(self, name, value)
        if not self.capacity:
            raise ValueError('Config.router.capacity=0: must be positive')

    @property
    def traits(self) -> Traits:
        reads: tuple[Reads, ...] = (*(('key',) if self.noise else ()),
                                    *(('batch',) if self.over == 'batch' else ()))
        return Traits(math.ceil(self.capacity), clamp=True, causal=False, rescales=True,
                      usage='mass', reads=frozenset(reads))

    @property
    def coefficients(self) -> Mapping[str, float]:
        return {}

    def places(self, rows: int) -> int:
        return rows

    def among(self, rows: Sequence[int]) -> Self:
        return self

    def leaves(self, width: int, rows: int) -> Mapping[str, Leaf]:
        """kernel [R, D]."""
        return {'kernel': Leaf((rows, width), normal=True)}

    def route(
        self, leaves: Mapping[str, jax.Array], given: RouterInput, rows: LayerRows
    ) -> Routing:
        logits = logits_of(given.x, leaves)
        if given.train and self.noise and given.key is not None:
            draw = jax.random.normal(given.key, logits.shape, jnp.float32)
            logits = logits + self.noise / rows.count * draw
        probs = jax.nn.softmax(logits, axis=-1)
        ranked = jnp.where(given.segments[:, None] > 0, probs, -1.0)
        if rows.closed is not None:
            ranked = never_chosen(ranked, rows.closed)
        parts = given.rows if self.over == 'row' else 1
        return as_choices(_slots(ranked, parts, self.capacity), logits, probs)

    def losses(self, routing: Routing, valid_N: jax.Array) -> Mapping[str, jax.Array]:
        return {}

    def replace(self, **fields: Any) -> Self:
        return dataclasses.replace(self, **fields)


ROUTER = ExpertChoice


def _slots(ranked_NR: jax.Array, parts: int, capacity: float) -> Slots:
    """The tokens that each row takes in each of `parts` equal runs of tokens; below 0: none."""
    tokens, rows = ranked_NR.shape
    each = tokens // parts
    valid = (ranked_NR.reshape(parts, each, rows) >= 0).any(axis=2).sum(axis=1)  # [parts]
    # The share that is valid may be smaller than the run: a row takes ceil(capacity n / R) of n.
    most = min(each, math.ceil(capacity * each / rows))
    scores, place = jax.lax.top_k(ranked_NR.reshape(parts, each, rows).transpose(0, 2, 1), most)
    allowed = jnp.ceil(capacity * valid.astype(jnp.float32) / rows).astype(jnp.int32)
    taken = (jnp.arange(most)[None, None] < allowed[:, None, None]) & (scores >= 0)
    place = place + (jnp.arange(parts) * each)[:, None, None]
    place, gates = jnp.where(taken, place, tokens), jnp.where(taken, scores, 0.0)
    place, gates = (a.transpose(1, 0, 2).reshape(rows, parts * most) for a in (place, gates))
    return Slots(place.astype(jnp.int32), gates)
