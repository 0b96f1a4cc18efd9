import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.kernels.linear import linear
from moe_jax.layers import norm
from moe_jax.layers.positions import (
    has_past,
    positions_in_branches,
    positions_in_segments,
)
from tests.moe_jax import numpy_model

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_layer_norm_by_numpy():
    x, scale, bias = 3 + 5 * normal(4, 7), normal(7), normal(7)
    np.testing.assert_allclose(
        norm.layer_norm(x, scale, bias), numpy_model.norm(x, {'scale': scale, 'bias': bias}),
        rtol=1e-4, atol=1e-5)


def test_layer_norm_of_bfloat16_is_computed_in_float32():
    x = jnp.asarray(1000 + normal(2, 64), jnp.bfloat16)
    found = norm.layer_norm(x, jnp.ones(64), jnp.zeros(64))
    exact = numpy_model.norm(np.asarray(x, np.float64), {'scale': 1, 'bias': 0})
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=1e-2, atol=1e-2)


def test_layer_norm_of_a_constant_row_is_its_bias():
    np.testing.assert_array_equal(norm.layer_norm(jnp.ones((1, 5)), jnp.ones(5), jnp.full(5, 2.0)),
                                  np.full((1, 5), 2.0))


def test_rms_norm_by_numpy():
    x, scale = normal(3, 7), normal(7)
    exact = x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=-1, keepdims=True) + 1e-3) * scale
    np.testing.assert_allclose(norm.rms_norm(x, scale, 1e-3), exact, rtol=1e-5, atol=1e-6)
    assert norm.rms_norm(jnp.ones((1, 2), jnp.bfloat16), jnp.ones(2)).dtype == jnp.bfloat16


def test_scaled_keeps_the_dtype_and_leaves_one_alone():
    x = jnp.asarray(normal(3), jnp.bfloat16)
    assert norm.scaled(x, 1.0) is x
    assert norm.scaled(x, 0.22).dtype == jnp.bfloat16
    np.testing.assert_allclose(norm.scaled(jnp.ones(2), 0.22), [0.22, 0.22], rtol=1e-6)


def test_linear_keeps_the_input_dtype_and_sums_in_float32():
    x, kernel, bias = normal(2, 3, 5), normal(5, 4), normal(4)
    np.testing.assert_allclose(linear(x, kernel, bias), x @ kernel + bias, rtol=1e-5, atol=1e-6)
    ones = jnp.ones((1, 300), jnp.bfloat16)
    found = linear(ones, jnp.ones((300, 1)), jnp.zeros(1))
    assert found.dtype == jnp.bfloat16 and float(found[0, 0]) == 300.0


@pytest.mark.parametrize('segments', [
    [1, 1, 1, 1], [1, 1, 2, 2], [1, 2, 3, 4], [0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 1, 1],
    [2, 2, 1, 1],
])
def test_positions_restart_in_every_segment(segments):
    found = positions_in_segments(jnp.array([segments], jnp.int32))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found[0], numpy_model.places(segments))


def test_positions_go_on_from_the_trunk_in_every_branch():
    segments = [1, 1, 1, 1, 1, 1, 2, 2, 2, 0]
    branches = [0, 0, 1, 1, 2, 2, 0, 1, 2, 0]
    found = positions_in_branches(*jnp.array([[segments], [branches]], jnp.int32))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found[0], [0, 1, 2, 3, 2, 3, 0, 1, 1, 0])


@pytest.mark.parametrize('kind', [np.array, jnp.array])
def test_the_first_token_of_a_segment_and_padding_have_no_past(kind):
    past = has_past(kind([[1, 1, 2, 2, 0, 0], [0, 1, 1, 1, 2, 3]]))
    np.testing.assert_array_equal(past, [[True, False, True, False, False],
                                         [False, True, True, False, False]])
