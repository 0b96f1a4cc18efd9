import math

import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.config import Rope
from moe_jax.layers import rope


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('interleaved', [False, True])
def test_rotation_is_a_complex_product(interleaved):
    turning = Rope(dim=6, theta=50.0, interleaved=interleaved)
    x, positions = normal(2, 4, 3, 8), np.array([[0, 1, 2, 3], [0, 0, 5, 9]])
    found = rope.rotate(x, *rope.angles(turning, jnp.asarray(positions)), interleaved=interleaved)
    pairs = x[..., 0:6:2] + 1j * x[..., 1:6:2] if interleaved else x[..., :3] + 1j * x[..., 3:6]
    speed = 50.0 ** (-np.arange(3) / 3)
    turned = pairs * np.exp(1j * positions[:, :, None, None] * speed)
    np.testing.assert_allclose(found[..., :3], turned.real, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[..., 3:6], turned.imag, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[..., 6:], x[..., 6:])


def test_only_the_distance_of_two_positions_counts():
    turning = Rope(dim=8)
    q, k = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=1)

    def product(at_q, at_k):
        def turn(x, at):
            return rope.rotate(x, *rope.angles(turning, jnp.array([[at]])), interleaved=False)

        return float((turn(q, at_q) * turn(k, at_k)).sum())

    assert product(7, 3) == pytest.approx(product(104, 100), rel=1e-4)
    assert product(7, 3) != pytest.approx(product(7, 4), rel=1e-2)


def test_scalings_stretch_slow_pairs_and_leave_fast_ones():
    plain = rope.frequencies(Rope(dim=64))
    np.testing.assert_allclose(plain, 10_000.0 ** (-np.arange(32) / 32), rtol=1e-5)
    np.testing.assert_allclose(rope.frequencies(Rope(dim=64, kind='linear', factor=4.0)),
                               plain / 4, rtol=1e-6)
    for kind in ('llama3', 'yarn'):
        found = rope.frequencies(Rope(dim=64, kind=kind, factor=8.0, trained=4096, fast=32))
        ratio = plain / found
        np.testing.assert_allclose([ratio[0], ratio[-1]], [1, 8], rtol=1e-4)
        assert (np.diff(ratio) > -1e-3).all()


def test_yarn_by_hand():
    """A pair with t turns over the trained length stays for t >= fast, is divided for t <= slow."""
    turning = Rope(dim=8, theta=100.0, kind='yarn', factor=4.0, trained=64, fast=4.0, slow=1.0,
                   truncate=False)
    plain = 100.0 ** (-np.arange(4) / 4)
    low, high = (8 * math.log(64 / (t * 2 * math.pi)) / (2 * math.log(100.0)) for t in (4, 1))
    share = np.clip((np.arange(4) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(rope.frequencies(turning), plain * (1 - share) + plain / 4 * share,
                               rtol=1e-5)


def test_llama3_by_hand():
    turning = Rope(dim=8, theta=100.0, kind='llama3', factor=4.0, trained=64, low_freq=1.0,
                   high_freq=4.0)
    plain = 100.0 ** (-np.arange(4) / 4)
    exact = []
    for speed in plain:
        wave = 2 * math.pi / speed
        smooth = (64 / wave - 1) / (4 - 1)
        exact.append(speed / 4 if wave > 64 else speed if wave < 16 else
                     (1 - smooth) * speed / 4 + smooth * speed)
    np.testing.assert_allclose(rope.frequencies(turning), exact, rtol=1e-5)
