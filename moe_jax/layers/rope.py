"""Rotary positions (Su et al. 2021, "RoFormer") and their scalings for longer rows.

B batch, T sequence, C channels of a head, R of them turning.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.config.parts import Rope


def angles(rope: Rope, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin [B, T, R/2] float32 of every position's angle on every pair of channels."""
    turn = positions.astype(jnp.float32)[..., None] * jnp.asarray(frequencies(rope))[None, None]
    return jnp.cos(turn) * rope.scale, jnp.sin(turn) * rope.scale


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array, *, interleaved: bool) -> jax.Array:
    """Turn the first R channels of x [B, T, H, C], in float32; the others pass.

    A pair (a, b) becomes (a cos - b sin, b cos + a sin). Interleaved pairs come out as two halves,
    all a before all b: q and k agree on it, and only their product is used.
    """
    half = cos.shape[-1]
    turning = x[..., : 2 * half].astype(jnp.float32)
    if interleaved:
        first, second = turning[..., 0::2], turning[..., 1::2]
    else:
        first, second = turning[..., :half], turning[..., half:]
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * half:]], axis=-1)


def frequencies(rope: Rope) -> np.ndarray:
    """Radians per position of each pair of channels, float32 [R/2]."""
    return SCALINGS[rope.kind](rope, 1.0 / _wavelengths(rope)).astype(np.float32)


def _wavelengths(rope: Rope) -> np.ndarray:
    """theta^(2i/R), the wavelength of pair i over 2 pi; float32 as the models were trained."""
    exponent = np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim)
    return np.power(np.float32(rope.theta), exponent)


def _plain(rope: Rope, plain: np.ndarray) -> np.ndarray:
    return plain


def _linear(rope: Rope, plain: np.ndarray) -> np.ndarray:
    return plain / np.float32(rope.factor)


def _llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
    """Slow pairs are stretched by the factor, fast ones stay, those between are blended."""
    turns = rope.trained * plain / (2 * math.pi)  # of the pair over the trained row length
    blend = (turns - rope.low_freq) / (rope.high_freq - rope.low_freq)
    blend = np.clip(blend, 0, 1).astype(np.float32)
    return (1 - blend) * plain / np.float32(rope.factor) + blend * plain


def _yarn(rope: Rope, plain: np.ndarray) -> np.ndarray:
    """As llama3, with the blend linear in the index of the pair (Peng et al. 2023, 3.2)."""
    def pair_that_turns(times: float) -> float:
        """The (fractional) index of the pair with that many turns over the trained length."""
        return rope.dim * math.log(rope.trained / (times * 2 * math.pi)) / (
            2 * math.log(rope.theta))

    low, high = pair_that_turns(rope.fast), pair_that_turns(rope.slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    if low == high:
        high += 0.001
    ramp = (np.arange(rope.dim // 2, dtype=np.float32) - low) / (high - low)
    keep = (1 - np.clip(ramp, 0, 1)).astype(np.float32)
    return plain / np.float32(rope.factor) * (1 - keep) + plain * keep


SCALINGS = {'plain': _plain, 'linear': _linear, 'llama3': _llama3, 'yarn': _yarn}
