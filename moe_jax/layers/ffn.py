"""The feed-forward functions: of a dense layer, of a shared expert and of each routed one.

M rows, D width, F hidden width. Each takes (weights of one, x [M, D]) and returns [M, D]; a bias
that is not among the weights is zero. `linear` is the product with a kernel plus a bias: with
another than `kernels.linear`, weights may be those of many, and each row has its own (`grouped`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from moe_jax.config import Config
from moe_jax.kernels.linear import linear

Weights = Mapping[str, Any]
Linear = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]


class Hidden(Protocol):
    """The first step of a feed-forward function."""

    def __call__(self, weights: Weights, x: jax.Array, linear: Linear = ..., /) -> jax.Array:
        """The hidden layer [M, F] of one, from x [M, D]."""
        ...


@dataclasses.dataclass(frozen=True)
class Ffn:
    """A feed-forward function in two steps: `hidden` [M, D] -> [M, F], then down [M, F] -> [M, D].

    Called, it does both.
    """

    hidden: Hidden

    def __call__(self, weights: Weights, x: jax.Array, linear: Linear = linear) -> jax.Array:
        return down(weights, self.hidden(weights, x, linear), linear)


def down(weights: Weights, hidden: jax.Array, linear: Linear = linear) -> jax.Array:
    """hidden down + down_bias, [M, F] -> [M, D]."""
    return linear(hidden, weights['down'], weights.get('down_bias'))


def gelu(weights: Weights, x: jax.Array, linear: Linear = linear) -> jax.Array:
    """GELU(x up + up_bias), in GPT-2's tanh form, in float32."""
    hidden = linear(x, weights['up'], weights.get('up_bias'))
    return jax.nn.gelu(hidden.astype(jnp.float32), approximate=True).astype(x.dtype)


def relu(weights: Weights, x: jax.Array, linear: Linear = linear) -> jax.Array:
    """max(0, x up + up_bias), as in Switch Transformers."""
    return jax.nn.relu(linear(x, weights['up'], weights.get('up_bias')))


def swiglu(weights: Weights, x: jax.Array, linear: Linear = linear) -> jax.Array:
    """SiLU(x gate) * (x up) (Shazeer 2020), the product in float32."""
    gate, up = _gate_up(weights, x, linear)
    return (jax.nn.silu(gate) * up).astype(x.dtype)


def swiglu_clamped(
    weights: Weights, x: jax.Array, linear: Linear = linear, *, limit: float, alpha: float
) -> jax.Array:
    """(u + 1) g sigmoid(alpha g) with g = min(x gate, limit), u = clip(x up, limit).

    The form of the gpt-oss models.
    """
    gate, up = _gate_up(weights, x, linear)
    gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
    return ((up + 1.0) * gate * jax.nn.sigmoid(alpha * gate)).astype(x.dtype)


# How each computes its hidden layer.
FFN: dict[str, Callable[..., jax.Array]] = {
    'gelu': gelu, 'relu': relu, 'swiglu': swiglu, 'swiglu_clamped': swiglu_clamped,
}


UNGATED = ('gelu', 'relu')


@lru_cache(maxsize=64)
def of(cfg: Config) -> Ffn:
    """The feed-forward function of a config: one object for each, so that nothing compiles twice.
    """
    if cfg.ffn == 'swiglu_clamped':
        return Ffn(partial(swiglu_clamped, limit=cfg.ffn_limit, alpha=cfg.ffn_alpha))
    return Ffn(FFN[cfg.ffn])


def shapes(cfg: Config, hidden: int) -> dict[str, tuple[int, ...]]:
    """The leaves of one feed-forward of `hidden` units and their shapes."""
    d, f = cfg.width, hidden
    leaves: dict[str, tuple[int, ...]] = {} if cfg.ffn in UNGATED else {'gate': (d, f)}
    leaves |= {'up': (d, f), 'down': (f, d)}
    if cfg.ffn_bias:
        leaves |= {f'{name}_bias': shape[1:] for name, shape in leaves.items()}
    return leaves


def _gate_up(
    weights: Weights, x: jax.Array, linear: Linear
) -> tuple[jax.Array, jax.Array]:
    """Both halves of a gated hidden layer [M, F], float32."""
    gate = linear(x, weights['gate'], weights.get('gate_bias'))
    up = linear(x, weights['up'], weights.get('up_bias'))
    return gate.astype(jnp.float32), up.astype(jnp.float32)
