"""Norms, products and positions: arrays in, arrays out."""

import jax
import jax.numpy as jnp

from moe_jax.outer_product import summed_outer


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


def rms_norm(x: jax.Array, scale: jax.Array, eps: float = 1e-5) -> jax.Array:
    """x / sqrt(mean x^2 + eps) over the last axis, times scale, in float32; returns x's dtype."""
    x32 = jax.lax.optimization_barrier(x).astype(jnp.float32)  # as in layer_norm
    y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(axis=-1, keepdims=True) + eps)
    return (y * _like(scale, y)).astype(x.dtype)


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """x [..., D] @ kernel [D, F] + bias [F], summed in float32, in x's dtype."""
    y = _product(x, kernel.astype(x.dtype))
    return (y if bias is None else y + _like(bias, y)).astype(x.dtype)


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., D] @ kernel [D, F], float32."""
    return jnp.dot(x, kernel, preferred_element_type=jnp.float32)


def _product_forward(x, kernel):
    return _product(x, kernel), (x, kernel)


def _product_backward(saved, dy):
    """Both gradients, by products of the dtype of x: in `linear` dy holds no finer numbers.

    The kernel's comes in the kernel's own order, from matrices. Left to itself jax turns it around,
    and XLA:CPU then transposes the activations, one number at a time.
    """
    x, kernel = saved
    dy = dy.astype(x.dtype)
    dx = jax.lax.dot_general(dy, kernel, (((dy.ndim - 1,), (1,)), ((), ())),
                             preferred_element_type=jnp.float32)
    dkernel = summed_outer(*(a.reshape(-1, a.shape[-1]) for a in (x, dy)))
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


_product.defvjp(_product_forward, _product_backward)


def scaled(x: jax.Array, factor: float) -> jax.Array:
    """x times a number of the config, computed in float32; x itself where the number is 1."""
    return x if factor == 1.0 else (x.astype(jnp.float32) * factor).astype(x.dtype)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine of the last axes, float32; 0 where either is zero."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return jnp.where(norms > 0, (a * b).sum(axis=-1) / jnp.where(norms > 0, norms, 1.0), 0.0)


def positions_in_segments(segments: jax.Array) -> jax.Array:
    """Position of each token inside its own segment; segments [B, T] -> int32 [B, T]."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)[None, :]
    previous = jnp.pad(segments[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    starts = jnp.where(segments != previous, index, jnp.zeros_like(index))
    return index - jax.lax.cummax(starts, axis=1)


def positions_in_branches(segments: jax.Array, branches: jax.Array) -> jax.Array:
    """Position of each token on its way through trunk and branch, int32 [B, T].

    segments [B, T], branches [B, T]: 0 is a segment's trunk, and comes first. A position is the
    number of earlier tokens of the segment that are the trunk's or of the same branch.
    """
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)
    earlier = (index[:, None] > index[None, :])[None]
    same = segments[:, :, None] == segments[:, None, :]
    return (earlier & same & along(branches)).sum(axis=-1, dtype=jnp.int32)


def along(branches: jax.Array) -> jax.Array:
    """Which tokens are on the way to a token, bool [B, T, T]: those of the trunk and its branch."""
    keys = branches[:, None, :]
    return (keys == 0) | (keys == branches[:, :, None])


def _like(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A [D] vector as float32 with x's rank, so that broadcasting is explicit."""
    return vector.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + vector.shape)
