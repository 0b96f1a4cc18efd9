from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.experts import evaluate
from moe_jax.layers import ffn
from tests.moe_jax import numpy_model

E, D, F, N = 4, 5, 6, 41  # N is no multiple of a block; few shapes, since each one compiles
GELU = ffn.Ffn(ffn.gelu)
WAYS = {
    'dense': partial(evaluate.dense, GELU),
    'dropless': partial(evaluate.dropless, GELU),
    'capacity': lambda w, x, ids, gates: evaluate.capacity(
        GELU, w, x, ids, gates, slots=len(x)),
}
LIMITED = jax.jit(partial(evaluate.capacity, GELU), static_argnames='slots')


def weights(seed=0, count=E):
    rng = np.random.default_rng(seed)
    shapes = {'up': (count, D, F), 'up_bias': (count, F), 'down': (count, F, D),
              'down_bias': (count, D)}
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}


def choices(kind, n, k, seed=0):
    """x [n, D], ids [n, k] distinct in each token, gates [n, k]."""
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((n, E)), axis=1)[:, :k]
    if kind == 'one':
        ids = np.stack([np.full(n, (2 + j) % E) for j in range(k)], axis=1)
    if kind == 'skewed':  # experts 0 and 3 have no rows (k <= 2)
        ids = np.where(ids % 2 == 0, 1, 2) if k == 1 else np.tile([1, 2, E][:k], (n, 1))
    if kind == 'padded':
        ids = np.where(rng.random((n, 1)) < 0.4, E, ids)
    if kind == 'all padded':
        ids = np.full((n, k), E)
    x, gates = rng.normal(size=(n, D)), rng.random((n, k)) + 0.1
    return (jnp.asarray(x, jnp.float32), jnp.asarray(ids, jnp.int32),
            jnp.asarray(gates, jnp.float32))


def value_and_gradients(way):
    """Jitted: the gradient of a random projection of y by weights, x and gates, and (y, kept)."""
    def loss(w, x, gates, ids):
        y, kept = WAYS[way](w, x, ids, gates)
        direction = jax.random.normal(jax.random.key(0), y.shape)
        return (y.astype(jnp.float32) * direction).sum(), (y, kept)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


DIFFERENTIATED = {way: value_and_gradients(way) for way in WAYS}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('k', [1, 2, 3])
def test_by_numpy_loops(way, k):
    w, (x, ids, gates) = weights(), choices('padded', N, k)
    _, (y, kept) = DIFFERENTIATED[way](w, x, gates, ids)
    wanted = np.asarray(ids) < E
    np.testing.assert_array_equal(kept, wanted)
    exact = numpy_model.mix_experts(
        numpy_model.float64(w), np.asarray(x, np.float64), np.asarray(ids),
        np.asarray(gates, np.float64), wanted)
    np.testing.assert_allclose(y, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(('kind', 'n', 'k'), [
    ('spread', N, 1), ('spread', N, 2), ('spread', N, 3),
    ('padded', N, 2), ('skewed', N, 1), ('skewed', N, 2), ('one', N, 2), ('all padded', N, 2),
    ('one', 301, 1), ('padded', 301, 1),  # over 128 rows in an expert: both block sizes
])
@pytest.mark.parametrize('way', ['dropless', 'capacity'])
def test_equals_dense_in_value_and_gradient(way, kind, n, k):
    w, (x, ids, gates) = weights(), choices(kind, n, k)
    (dw, dx, dg), (y, _) = DIFFERENTIATED[way](w, x, gates, ids)
    (dw0, dx0, dg0), (y0, _) = DIFFERENTIATED['dense'](w, x, gates, ids)
    close = {'rtol': 1e-4, 'atol': 1e-4}
    np.testing.assert_allclose(y, y0, **close)
    np.testing.assert_allclose(dx, dx0, **close)
    np.testing.assert_allclose(dg, dg0, **close)
    for name in dw:
        np.testing.assert_allclose(dw[name], dw0[name], err_msg=name, **close)


@pytest.mark.parametrize('way', ['dropless', 'capacity'])
def test_gradient_by_finite_differences(way):
    w, (x, ids, gates) = weights(), choices('spread', N, 2)
    direction = np.asarray(jax.random.normal(jax.random.key(0), x.shape), np.float64)
    (dw, dx, _), _ = DIFFERENTIATED[way](w, x, gates, ids)
    w64, x64 = numpy_model.float64(w), np.asarray(x, np.float64)
    all_kept = np.ones(ids.shape, bool)

    def loss(w, x):
        y = numpy_model.mix_experts(w, x, np.asarray(ids), np.asarray(gates, np.float64), all_kept)
        return (y * direction).sum()

    step = np.zeros_like(x64)
    step[3, 2] = 1e-5
    slope = (loss(w64, x64 + step) - loss(w64, x64 - step)) / 2e-5
    assert float(dx[3, 2]) == pytest.approx(slope, rel=1e-3)
    for name, place in {'up': (1, 2, 3), 'up_bias': (0, 4), 'down': (3, 1, 1),
                        'down_bias': (2, 0)}.items():
        step = np.zeros_like(w64[name])
        step[place] = 1e-5
        slope = (loss(w64 | {name: w64[name] + step}, x64)
                 - loss(w64 | {name: w64[name] - step}, x64)) / 2e-5
        assert float(dw[name][place]) == pytest.approx(slope, rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize('way', ['dropless', 'capacity'])
def test_bfloat16_is_close_and_stays_bfloat16(way):
    w, (x, ids, gates) = weights(), choices('spread', N, 2)
    _, (exact, _) = DIFFERENTIATED['dense'](w, x, gates, ids)
    (_, dx, _), (y, _) = DIFFERENTIATED[way](w, x.astype(jnp.bfloat16), gates, ids)
    assert y.dtype == dx.dtype == jnp.bfloat16
    scale = float(jnp.abs(exact).max())
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.03 * scale)


@pytest.mark.parametrize(('k', 'slots'), [(1, 1), (1, 4), (2, 3), (3, 8)])
def test_capacity_drops_what_numpy_says(k, slots):
    w, (x, ids, gates) = weights(), choices('padded', 19, k, seed=k)
    y, kept = LIMITED(w, x, ids, gates, slots=slots)
    wanted = numpy_model.kept_choices(np.asarray(ids), E, slots)
    np.testing.assert_array_equal(kept, wanted)
    exact = numpy_model.mix_experts(numpy_model.float64(w), np.asarray(x, np.float64),
                                    np.asarray(ids), np.asarray(gates, np.float64), wanted)
    np.testing.assert_allclose(y, exact, rtol=1e-4, atol=1e-5)


def test_first_choices_and_earlier_tokens_come_first():
    ids = jnp.array([[1, 0], [0, 1], [0, 1], [0, 1]], jnp.int32)
    kept = evaluate.slot_of_choice(ids, 2, 3) < 6
    # expert 0: tokens 1, 2, 3 by first choice, so token 0's second choice finds it full
    np.testing.assert_array_equal(kept, [[True, False], [True, True], [True, True], [True, False]])


def test_a_dropped_token_gets_exactly_nothing_and_no_gradient():
    w, (x, ids, gates) = weights(), choices('one', 10, 1)
    y, kept = LIMITED(w, x, ids, gates, slots=4)
    np.testing.assert_array_equal(kept[:, 0], [True] * 4 + [False] * 6)
    np.testing.assert_array_equal(y[4:], np.zeros((6, D)))
    dx = jax.jit(jax.grad(lambda x: LIMITED(w, x, ids, gates, slots=4)[0].sum()))(x)
    assert (np.abs(dx[:4]) > 0).all()
    np.testing.assert_array_equal(dx[4:], np.zeros((6, D)))


@pytest.mark.parametrize(('factor', 'tokens', 'topk', 'count', 'minimum', 'slots'), [
    (1.0, 64, 1, 8, 4, 8), (1.2, 64, 1, 8, 4, 10), (1.0, 64, 2, 8, 4, 16), (1.0, 65, 1, 8, 4, 9),
    (1.0, 16, 1, 8, 4, 4), (1.0, 3, 1, 8, 4, 3), (100.0, 64, 1, 8, 4, 64), (0.5, 64, 1, 8, 4, 4),
])
def test_slots(factor, tokens, topk, count, minimum, slots):
    assert evaluate.capacity_slots(factor, tokens, topk, count, minimum) == slots


def test_gather_rows_fills_with_zeros_and_its_gradient_is_the_transpose():
    x = jnp.arange(6, dtype=jnp.float32).reshape(3, 2)
    index = jnp.array([2, 3, 0, 2], jnp.int32)
    inverse = jnp.array([[2, 4], [4, 4], [0, 3]], jnp.int32)
    y, pull = jax.vjp(lambda x: evaluate.gather_rows(x, index, inverse), x)
    np.testing.assert_array_equal(y, [[4, 5], [0, 0], [0, 1], [4, 5]])
    dy = jnp.array([[1, 2], [3, 4], [5, 6], [7, 8]], jnp.float32)
    np.testing.assert_array_equal(pull(dy)[0], [[5, 6], [0, 0], [8, 10]])
