"""Sub-MoE's merge in a shared subspace against numpy's SVD of the members side by side."""

import jax.numpy as jnp
import numpy as np
import pytest

from prune.similarity import subspace

LABELS = np.array([0, 1, 0, 2, 0, 1])
MEMBERS = np.arange(3)[:, None] == LABELS


def case(seed, rows=5, columns=7, dtype=np.float32):
    rng = np.random.default_rng(seed)
    old = jnp.asarray(rng.normal(size=(6, rows, columns)), dtype)
    weights = MEMBERS * rng.uniform(0.1, 1, 6)
    weights /= weights.sum(axis=1, keepdims=True)
    host = np.asarray(old).astype(np.float64)
    mixed = np.einsum('ge,eab->gab', weights, host)
    return old, host, weights, mixed


def joint_svd(members, weights, rank):
    """U S (sum_e a_e V_e) of the members [n, A, B], the paper's merge, by numpy."""
    u, s, v = np.linalg.svd(np.concatenate(list(members), axis=1), full_matrices=False)
    parts = np.split(v, len(members), axis=1)
    merged = sum(a * part for a, part in zip(weights, parts, strict=True))
    return u[:, :rank] @ np.diag(s[:rank]) @ merged[:rank]


@pytest.mark.parametrize(('rows', 'columns'), [(5, 7), (9, 3), (12, 2)])
@pytest.mark.parametrize('seed', range(3))
def test_at_full_rank_the_joint_svd_merge_is_the_weighted_mean(seed, rows, columns):
    """Also where the members together have fewer columns than rows."""
    _, host, weights, mixed = case(seed, rows, columns)
    for g in range(3):
        ids = g == LABELS
        np.testing.assert_allclose(joint_svd(host[ids], weights[g, ids], rows), mixed[g],
                                   atol=1e-12)


@pytest.mark.parametrize('rank', [1, 2, 4])
@pytest.mark.parametrize('seed', range(2))
def test_projection_is_the_truncated_joint_svd_merge(seed, rank):
    old, host, weights, mixed = case(seed)
    found = subspace.project(old, MEMBERS, jnp.asarray(mixed, jnp.float32), rank)
    for g in (0, 1):
        ids = g == LABELS
        np.testing.assert_allclose(found[g], joint_svd(host[ids], weights[g, ids], rank),
                                   atol=2e-5)
        assert np.linalg.matrix_rank(np.asarray(found[g]), tol=1e-4) == rank
    np.testing.assert_array_equal(found[2], mixed[2].astype(np.float32))  # alone: untouched


def test_full_rank_and_biases_are_left_alone():
    old, _, _, mixed = case(0)
    mixed = jnp.asarray(mixed, jnp.float32)
    for rank in (5, 6, 100):
        assert subspace.project(old, MEMBERS, mixed, rank) is mixed
    bias = jnp.ones((3, 5))
    assert subspace.project(jnp.ones((6, 5)), MEMBERS, bias, 1) is bias


def test_the_dtype_stays():
    old, host, weights, mixed = case(1, dtype=jnp.bfloat16)
    found = subspace.project(old, MEMBERS, jnp.asarray(mixed, jnp.bfloat16), 2)
    assert found.dtype == jnp.bfloat16 and found.shape == (3, 5, 7)
    want = joint_svd(host[LABELS == 0], weights[0, LABELS == 0], 2)
    np.testing.assert_allclose(found[0].astype(np.float32), want, atol=0.05)


def test_members_that_share_a_subspace_lose_nothing_in_it():
    rng = np.random.default_rng(3)
    basis = rng.normal(size=(5, 2))
    old = jnp.asarray(np.einsum('ar,erb->eab', basis, rng.normal(size=(6, 2, 7))), jnp.float32)
    mixed = jnp.einsum('ge,eab->gab', jnp.asarray(MEMBERS / MEMBERS.sum(1, keepdims=True),
                                                  jnp.float32), old)
    np.testing.assert_allclose(subspace.project(old, MEMBERS, mixed, 2), mixed, atol=1e-5)
    assert np.abs(subspace.project(old, MEMBERS, mixed, 1) - mixed).max() > 0.1
