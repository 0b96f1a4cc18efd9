"""How much stays, as it is asked for: what `prune.plan` and `moe-jax prune` take."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

Spread = Literal['layer', 'global', 'share', 'mass', 'error']
AMOUNTS = ('experts', 'ratio', 'mass', 'parameters', 'memory')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Amounts:
    """How much stays, by exactly one of the amounts, and how it is spread over layers.

    Attributes:
        experts: experts to leave in every MoE layer, one number or one for each layer.
        ratio: the share of experts to remove, from 0 to below 1, one number or one for each layer.
        mass: leave in each layer the fewest experts that hold this share of its score.
        parameters: parameters of the whole model at most, such as 900M or 1.2B.
        memory: bytes of the whole model's weights at most, such as 24GB (10^9) or 24GiB (2^30).
        spread: layer gives every layer its own number; otherwise their sum is spent where scores
            say: compared as they are (global), as shares of their layer (share), so that layers
            keep the same share of their score (mass), or so that the layers' errors sum to the
            least (error; needs statistics with a reservoir) (default: the method's own).
        floor: the fewest experts of any layer (default: what a token uses; with clamp 1).
        clamp: let layers keep fewer experts than a token uses; they then use all they have.
    """

    experts: int | Sequence[int] | None = None
    ratio: float | Sequence[float] | None = None
    mass: float | None = None
    parameters: int | None = None
    memory: int | None = None
    spread: Spread | None = None
    floor: int | None = None
    clamp: bool = False
