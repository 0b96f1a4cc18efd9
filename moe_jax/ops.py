"""Layer norm and causal attention inside packed segments: arrays in, arrays out."""

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a row with nothing to attend to gives a mean and not NaN


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float = 1e-5) -> jax.Array:
    """Normalise the last axis in float32, then scale and shift; returns x's dtype."""
    # Without the barrier XLA:CPU fuses the whole chain of later layers into every gradient that
    # reads the residual stream, so the backward pass grows with the square of the depth.
    x32 = jax.lax.optimization_barrier(x).astype(jnp.float32)
    mean = x32.mean(axis=-1, keepdims=True)
    var = jnp.square(x32 - mean).mean(axis=-1, keepdims=True)
    y = (x32 - mean) * jax.lax.rsqrt(var + eps)
    y = y * _like(scale, y) + _like(bias, y)
    return y.astype(x.dtype)


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x [..., D] @ kernel [D, F] + bias [F], summed in float32, in x's dtype."""
    y = jnp.dot(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
    return (y + _like(bias, y)).astype(x.dtype)


def gelu(x: jax.Array) -> jax.Array:
    """GELU in GPT-2's tanh form, computed in float32."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


def positions_in_segments(segments: jax.Array) -> jax.Array:
    """Position of each token inside its own segment; segments [B, T] -> int32 [B, T]."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)[None, :]
    previous = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    starts = jnp.where(segments != previous, index, jnp.zeros_like(index))
    return index - jax.lax.cummax(starts, axis=1)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
    """Causal softmax attention that never leaves a segment; q, k, v [B, T, H, D/H], same out.

    softmax(q k^T / sqrt(D/H)) v over earlier tokens of the same segment, softmax in float32.
    """
    scale = q.shape[-1] ** -0.5
    scores = jnp.einsum('bqhc,bkhc->bhqk', q, k, preferred_element_type=jnp.float32) * scale
    length = q.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    seen = causal[None] & (segments[:, :, None] == segments[:, None, :])
    probs = jax.nn.softmax(jnp.where(seen[:, None], scores, MASKED), axis=-1)
    out = jnp.einsum('bhqk,bkhc->bqhc', probs.astype(v.dtype), v,
                     preferred_element_type=jnp.float32)
    return out.astype(v.dtype)


def _like(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A [D] vector as float32 with x's rank, so that broadcasting is explicit."""
    return vector.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + vector.shape)
