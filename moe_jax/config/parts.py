"""The parts of a Config that a model has as a whole or not at all; each checks itself."""

import dataclasses
import math

from moe_jax.base.checks import choice, integer, number

CLOSED = -1  # in an alias: a router row that counts in the softmax and is never chosen
LIMIT = 2**24  # of every size: far above any model, far below what overflows int32 arithmetic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions (Su et al. 2021): pairs of channels of q and k rotate with the position.

    Raises ValueError naming the field that makes no rotation.
    """

    dim: int  # channels of a head that rotate: its first ones (its last ones in a latent head)
    theta: float = 10_000.0  # the base
    interleaved: bool = False  # a pair is channels (2i, 2i+1), not (i, i + dim/2)
    # 'plain', or a scaling for longer rows: 'linear' (positions / factor), 'llama3' (low_freq,
    # high_freq) or 'yarn' (Peng et al. 2023; fast, slow, truncate).
    kind: str = 'plain'
    factor: float = 1.0
    trained: int = 0  # row length before scaling, for 'llama3' and 'yarn'
    low_freq: float = 1.0
    high_freq: float = 4.0
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True
    scale: float = 1.0  # multiplies cos and sin

    def __post_init__(self) -> None:
        choice('Config.rope.kind', self.kind, ('plain', 'linear', 'llama3', 'yarn'))
        if integer('Config.rope.dim', self.dim, 2, LIMIT) % 2:
            raise ValueError(f'Config.rope.dim={self.dim}: must be even')
        for name in ('theta', 'factor', 'scale', 'low_freq', 'high_freq', 'fast', 'slow'):
            number(f'Config.rope.{name}', getattr(self, name))
        integer('Config.rope.trained', self.trained, 0, LIMIT)
        if not (self.theta > 0 and self.factor > 0 and self.scale > 0):
            raise ValueError('Config.rope: theta, factor and scale must be above 0')
        if self.kind == 'llama3' and not self.low_freq < self.high_freq:
            raise ValueError(f'Config.rope.low_freq={self.low_freq}: must be below '
                             f'high_freq={self.high_freq}')
        if self.kind == 'yarn' and not (self.theta > 1 and self.fast > 0 and self.slow > 0):
            raise ValueError("Config.rope: kind 'yarn' needs theta above 1, fast and slow above 0")
        if self.kind in ('llama3', 'yarn') and self.trained < 1:
            raise ValueError(f'Config.rope.trained={self.trained}: kind {self.kind!r} needs the '
                             'row length before scaling')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): q, k and v through low ranks.

    Raises ValueError naming the field that makes no attention.
    """

    kv: int  # rank of the latent of keys and values
    plain: int  # channels of a head's queries and keys without positions
    rotary: int  # channels of a head's queries and keys that rotate; all heads share them in k
    value: int  # channels of a head's values
    query: int = 0  # rank of the latent of queries; 0: q is projected straight from the input
    norm_eps: float = 1e-6  # of the norms of both latents

    def __post_init__(self) -> None:
        for name in ('kv', 'plain', 'rotary', 'value'):
            integer(f'Config.latent.{name}', getattr(self, name), 1, LIMIT)
        integer('Config.latent.query', self.query, 0, LIMIT)


def yarn_magnitude(factor: float, slope: float = 1.0) -> float:
    """YaRN's correction of attention's temperature: 0.1 slope ln(factor) + 1 (Peng et al., 3.4)."""
    return 0.1 * slope * math.log(factor) + 1.0 if factor > 1 else 1.0
