"""The loops over experts of CPU, where groups have many blocks, against one product per group."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.experts import grouped_loop as grouped_ffn
from moe_jax.kernels import loop
from moe_jax.kernels.linear import linear
from moe_jax.kernels.schedule import WHOLE, Group, first_sizes, over_blocks
from tests.matrix import rows
from tests.moe_jax.kernels.grouped_layer import ROWS, SIZES, D, F, both, by_group, layer


@pytest.mark.parametrize('kind', rows(['gelu', 'relu', 'swiglu_clamped'], quick=['relu']))
def test_many_blocks_equal_one_product_per_group(kind):
    function, weights, x, dy = layer(kind)
    sizes = jnp.asarray(SIZES, jnp.int32)
    exact = jax.jit(partial(both, partial(by_group, function)))(weights, x, dy)
    for apply in (loop.apply, grouped_ffn.apply):
        found = jax.jit(partial(both, lambda w, x, apply=apply: apply(function, w, x, sizes)))(
            weights, x, dy)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), found, exact)


def test_halves_are_summed_in_float32():
    """In bfloat16 all is within a rounding or two of float32, sums over many rows too."""
    function, weights, x, dy = layer('swiglu', jnp.bfloat16)
    exact = jax.jit(partial(both, partial(by_group, function)))(
        *jax.tree.map(lambda a: a.astype(jnp.float32), (weights, x, dy)))
    found = jax.jit(partial(both, lambda w, x: grouped_ffn.apply(
        function, w, x, jnp.asarray(SIZES, jnp.int32))))(weights, x, dy)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert a.dtype == jnp.bfloat16
        error = np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)
        assert error < 1e-2


def test_float32_weights_of_a_half_model_get_float32_gradients():
    function, weights, x, dy = layer('gelu', jnp.bfloat16)
    weights = jax.tree.map(lambda w: w.astype(jnp.float32), weights)
    _, dweights, dx = jax.jit(partial(both, lambda w, x: grouped_ffn.apply(
        function, w, x, jnp.asarray(SIZES, jnp.int32))))(weights, x, dy)
    assert dx.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(dweights)} == {jnp.dtype('float32')}


def test_what_is_kept_is_each_product_once():
    """Of the hidden layer gate and up are kept, and nothing made of them."""
    function, weights, x, _ = layer('swiglu')
    saved = jax.eval_shape(lambda w, x: jax.vjp(lambda w, x: grouped_ffn.apply(
        function, w, x, jnp.asarray(SIZES, jnp.int32)), w, x)[1], weights, x)
    kept = [leaf for leaf in jax.tree.leaves(saved) if leaf.shape[-1:] == (F,) and leaf.ndim == 2
            and leaf.shape[0] >= ROWS]
    assert len(kept) == 2


def test_blocks_hold_every_row_of_a_group_once_and_in_order():
    rows = 3 * WHOLE

    @jax.jit
    def visits(sizes):
        def block(row, size, count, carry):
            seen, last = carry
            place = jnp.arange(seen.shape[0])
            mine = (place >= row) & (place < row + count)
            return seen + mine.astype(jnp.int32), jnp.where(row > last, row, 10**6)

        return over_blocks(Group.of(sizes, 1), rows, block,
                           (jnp.zeros((rows,), jnp.int32), jnp.int32(-1)))

    for count in (0, 1, 15, 16, 17, 128, 129, 200, 255, 256, 257, 512, 600):
        seen, last = visits(jnp.asarray([7, count], jnp.int32))
        wanted = (np.arange(rows) >= 7) & (np.arange(rows) < 7 + count)
        assert np.array_equal(seen, wanted) and last < 10**6


def test_first_blocks_hold_as_many_rows_as_there_are():
    for count in (1, 16, 17, 200, WHOLE, 10**6):
        sizes = first_sizes(count)
        assert sizes == tuple(sorted(sizes)) and sizes[-1] >= min(count, WHOLE)


def test_a_linear_layer_differentiates_as_a_product_does():
    rng = np.random.default_rng(0)
    x, kernel, bias, dy = (rng.normal(size=s) for s in ((3, 4, D), (D, F), (F,), (3, 4, F)))
    _, pull = jax.vjp(linear, *(jnp.asarray(a, jnp.float32) for a in (x, kernel, bias)))
    dx, dkernel, dbias = pull(jnp.asarray(dy, jnp.float32))
    np.testing.assert_allclose(dx, dy @ kernel.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dkernel, np.einsum('btd,btf->df', x, dy), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dbias, dy.sum((0, 1)), rtol=1e-5, atol=1e-5)
