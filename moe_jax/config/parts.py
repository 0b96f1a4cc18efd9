"""The parts of a Config that a model has as a whole or not at all."""


import dataclasses
import math


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions (Su et al. 2021): pairs of channels of q and k turn with the position.

    dim: channels of a head that turn, its first ones (its last ones in a latent head). interleaved:
    a pair is channels (2i, 2i+1), not (i, i + dim/2). theta: the base. kind 'plain', or a scaling
    for longer rows: 'linear' (positions / factor), 'llama3' (low_freq, high_freq) or 'yarn' (Peng
    et al. 2023; fast, slow, truncate), the last two with `trained`, the row length before scaling.
    scale multiplies cos and sin.
    """

    dim: int
    theta: float = 10_000.0
    interleaved: bool = False
    kind: str = 'plain'
    factor: float = 1.0
    trained: int = 0
    low_freq: float = 1.0
    high_freq: float = 4.0
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True
    scale: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): q, k and v through low ranks.

    query and kv: ranks of the latents (query 0: q is projected straight from the input). A head's
    queries and keys have `plain` channels and `rotary` ones, which all heads share in k; values
    have `value`. norm_eps: of the norms of both latents.
    """

    kv: int
    plain: int
    rotary: int
    value: int
    query: int = 0
    norm_eps: float = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skip:
    """Dynamic execution: which of its K chosen experts a token really uses, at evaluation.

    kind is a key of `skipping.RULES`. 'ratio': slot k is left out where its gate is below
    thresholds[i][k-1] times the token's largest (Lu et al. 2024, section 3.3, for K = 2). 'top_p':
    slots are used until their probabilities sum to more than thresholds[i][0] (Huang et al. 2024,
    section 3.1). thresholds has one entry per layer, () for a dense one. protect: the share of a
    row's tokens, those of greatest importance, that use all K experts (MC-MoE, section 3.3).
    """

    kind: str
    thresholds: tuple[tuple[float, ...], ...]
    protect: float = 0.0


def yarn_magnitude(factor: float, slope: float = 1.0) -> float:
    """YaRN's correction of attention's temperature: 0.1 slope ln(factor) + 1 (Peng et al., 3.4)."""
    return 0.1 * slope * math.log(factor) + 1.0 if factor > 1 else 1.0


CLOSED = -1  # in an alias: a router row that counts in the softmax and is never chosen
