"""Norms, scaling and cosines: arrays in, arrays out."""

import jax
import jax.numpy as jnp

from moe_jax.kernels.linear import like


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float = 1e-5) -> jax.Array:
    """Normalize the last axis in float32, then scale and shift; returns x's dtype."""
    # Without the barrier XLA:CPU fuses the whole chain of later layers into every gradient that
    # reads the residual stream, so the backward pass grows with the square of the depth.
    x32 = jax.lax.optimization_barrier(x).astype(jnp.float32)
    mean = x32.mean(axis=-1, keepdims=True)
    var = jnp.square(x32 - mean).mean(axis=-1, keepdims=True)
    y = (x32 - mean) * jax.lax.rsqrt(var + eps)
    y = y * like(scale, y) + like(bias, y)
    return y.astype(x.dtype)


def rms_norm(x: jax.Array, scale: jax.Array, eps: float = 1e-5) -> jax.Array:
    """x / sqrt(mean x^2 + eps) over the last axis, times scale, in float32; returns x's dtype."""
    x32 = jax.lax.optimization_barrier(x).astype(jnp.float32)  # as in layer_norm
    y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(axis=-1, keepdims=True) + eps)
    return (y * like(scale, y)).astype(x.dtype)


def scaled(x: jax.Array, factor: float) -> jax.Array:
    """x times a number of the config, computed in float32; x itself where the number is 1."""
    return x if factor == 1.0 else (x.astype(jnp.float32) * factor).astype(x.dtype)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine of the last axes, float32; 0 where either is zero."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.where(norms > 0, (a * b).sum(axis=-1) / jnp.where(norms > 0, norms, 1.0), 0.0)
