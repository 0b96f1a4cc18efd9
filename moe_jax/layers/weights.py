"""The parts that every layer of the decoder has: norms, and weights with their initial values."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe_jax.config import Config
from moe_jax.layers import ffn, norm

DRAWN = (2**12, 2**16)  # numbers that small leaves draw


def init_std(cfg: Config) -> float:
    """Standard deviation of fresh matrices, 0.64/sqrt(D): GPT-2's 0.02 at D = 1024."""
    return 0.64 * cfg.width**-0.5


def normal(std: float) -> Callable[..., jax.Array]:
    """The initializer of normal values with standard deviation `std`.

    Of the key's stream of numbers a small leaf takes the first ones of as many as the leaves of
    other shapes draw, so that a program is compiled for two sizes rather than for every shape.
    """
    def draw(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        size = math.prod(shape)
        drawn = next((n for n in DRAWN if size <= n), size)
        return (std * jax.random.normal(key, (drawn,), dtype)[:size]).reshape(shape)

    return draw


class Norm(nn.Module):
    """Layer norm (scale and bias) or RMS norm (scale) over the last axis, `size` wide."""

    kind: str
    eps: float
    size: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param('scale', nn.initializers.ones, (self.size,), jnp.float32)
        if self.kind == 'rms':
            return norm.rms_norm(x, scale, self.eps)
        bias = self.param('bias', nn.initializers.zeros, (self.size,), jnp.float32)
        return norm.layer_norm(x, scale, bias, self.eps)


def residual_std(cfg: Config) -> float:
    return init_std(cfg) * (2 * cfg.layers) ** -0.5


def ffn_weights(module: nn.Module, cfg: Config, hidden: int, lead: tuple[int, ...] = ()) -> Any:
    """The leaves of a feed-forward, or of several with `lead` before every shape."""
    weights = {}
    for name, shape in ffn.shapes(cfg, hidden).items():
        std = residual_std(cfg) if name == 'down' else init_std(cfg)
        start = nn.initializers.zeros if name.endswith('bias') else normal(std)
        weights[name] = module.param(name, start, lead + shape, jnp.float32)
    return weights


def dense_weights(module, cfg, name, rows, columns, bias, residual=False):
    """Kernel `name` [rows, columns] of a Linen module, and bias `name_bias` or None."""
    std = residual_std(cfg) if residual else init_std(cfg)
    kernel = module.param(name, normal(std), (rows, columns), jnp.float32)
    if not bias:
        return kernel, None
    return kernel, module.param(f'{name}_bias', nn.initializers.zeros, (columns,), jnp.float32)
