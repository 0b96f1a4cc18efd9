from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.layers import attention, attention_loop
from moe_jax.layers.attention import Rows
from tests.moe_jax import numpy_model

SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 2, 2]], np.int32)


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def rows(segments, keys=None, first=0):
    """Queries in slots first, first+1, ... that may look at `keys` (None: at themselves)."""
    segments = jnp.asarray(segments, jnp.int32)
    keys = segments if keys is None else jnp.asarray(keys, jnp.int32)
    return Rows(segments, first + jnp.arange(segments.shape[1]), keys, None, None)


@pytest.mark.parametrize('window', [0, 1, 2])
@pytest.mark.parametrize('sinks', [None, np.array([0.5, -1.0, 2.0, 0.0], np.float32)])
def test_attention_by_loops(window, sinks):
    q, k, v = normal(2, 6, 4, 3), normal(2, 6, 2, 3, seed=1), normal(2, 6, 2, 5, seed=2)
    seen = attention.visible(rows(SEGMENTS), window)
    found = attention.attend(q, k, v, seen, 0.7, None if sinks is None else jnp.asarray(sinks))
    assert found.shape == (2, 6, 4, 5)
    for b, t, h in np.ndindex(2, 6, 4):
        past = [s for s in range(t + 1) if SEGMENTS[b, s] == SEGMENTS[b, t]
                and (not window or s > t - window)]
        scores = 0.7 * q[b, t, h].astype(np.float64) @ k[b, past, h // 2].T
        if sinks is not None:
            scores = np.append(scores, sinks[h])
        weights = numpy_model.softmax(scores)[:len(past)]
        np.testing.assert_allclose(found[b, t, h], weights @ v[b, past, h // 2], rtol=1e-4,
                                   atol=1e-5)


def test_queries_in_later_slots_see_the_cache():
    seen = attention.visible(rows([[1], [2]], [[1, 1, 1, 1, 0], [0, 2, 2, 2, 0]], first=3), 0)
    np.testing.assert_array_equal(seen[:, 0], [[1, 1, 1, 1, 0], [0, 1, 1, 1, 0]])
    seen = attention.visible(rows([[1], [2]], [[1, 1, 1, 1, 0], [0, 2, 2, 2, 0]], first=3), 2)
    np.testing.assert_array_equal(seen[:, 0], [[0, 0, 1, 1, 0], [0, 0, 1, 1, 0]])


def on_branches(segments, branches):
    """Rows whose positions are worked out by a loop over earlier tokens."""
    found = rows(segments)
    positions = [[sum(seg[s] == seg[t] and way[s] in (0, way[t]) for s in range(t))
                  for t in range(len(seg))] for seg, way in zip(segments, branches, strict=True)]
    return found._replace(branches=jnp.asarray(branches), positions=jnp.asarray(positions))


def test_a_branch_sees_its_trunk_and_itself():
    seen = attention.visible(on_branches([[1, 1, 1, 1, 1, 2]], [[0, 0, 1, 2, 2, 0]]), 0)
    np.testing.assert_array_equal(seen[0], [
        [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0], [1, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1]])


def test_a_window_counts_positions_on_a_branch():
    seen = attention.visible(on_branches([[1] * 6], [[0, 0, 1, 1, 2, 2]]), 2)
    np.testing.assert_array_equal(seen[0], [
        [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 1, 1]])


@pytest.mark.parametrize('window', [0, 2])
def test_without_branches_all_is_trunk(window):
    plain = attention.visible(rows(SEGMENTS), window)
    trunk = on_branches(SEGMENTS, np.zeros_like(SEGMENTS))
    np.testing.assert_array_equal(attention.visible(trunk, window), plain)


def test_large_scores_and_padding_rows_stay_finite():
    q = jnp.full((1, 3, 1, 2), 1e4)
    seen = attention.visible(rows([[1, 0, 0]]), 0)
    value, pull = jax.vjp(
        lambda q: attention.attend(q, q, jnp.ones_like(q), seen, 1.0), q)
    np.testing.assert_array_equal(value, np.ones((1, 3, 1, 2)))
    assert np.isfinite(pull(jnp.ones_like(q))[0]).all()


@pytest.mark.parametrize(('sinks', 'at_a_time'), [(True, 2**24), (False, 60), (True, 60)])
def test_one_sequence_at_a_time_is_the_same_attention(sinks, at_a_time, monkeypatch):
    """Values and gradients, whole and in parts of few queries."""
    monkeypatch.setattr(attention_loop, 'SCORES', at_a_time)
    q, k, v = normal(2, 6, 4, 3), normal(2, 6, 2, 3, seed=1), normal(2, 6, 2, 5, seed=2)
    seen, direction = attention.visible(rows(SEGMENTS), 0), normal(2, 6, 4, 5, seed=3)
    given = tuple(map(jnp.asarray, (q, k, v, *((normal(4, seed=4),) if sinks else ()))))

    def value(attend, given):
        q, k, v, *sink = given
        y = attend(q, k, v, seen, 0.7, *sink)
        return (y * direction).sum(), y

    (a, found), (b, wanted) = (
        jax.jit(jax.grad(partial(value, module.attend), has_aux=True))(given)[::-1]
        for module in (attention_loop, attention))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), (a, found), (b, wanted))


def test_in_halves_it_is_attention_within_a_rounding():
    q, k, v = (jnp.asarray(normal(2, 6, h, 4, seed=h), jnp.bfloat16) for h in (4, 2, 2))
    seen = attention.visible(rows(SEGMENTS), 0)
    found = attention_loop.attend(q, k, v, seen, 0.5)
    wanted = attention.attend(*(a.astype(jnp.float32) for a in (q, k, v)), seen, 0.5)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float32), wanted, rtol=0, atol=2e-2)
