"""Similarity and partitions against numpy and scikit-learn, and every degenerate case."""

import numpy as np
import pytest
from scipy.cluster.vq import ClusterError, kmeans2
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from prune.similarity import cluster
from prune.subsets.top import top


def planted(seed, groups=4, size=3, tokens=200, noise=0.3):
    """Logits [T, E] whose columns follow one direction per group, experts shuffled; and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(groups), size))
    base = rng.normal(size=(tokens, groups))
    return base[:, labels] + noise * rng.normal(size=(tokens, len(labels))), labels


def sums(z):
    return {'logit_gram': z.T @ z, 'logit_sum': z.sum(axis=0), 'tokens': np.asarray(len(z))}


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('center', ['none', 'expert', 'token'])
def test_planted_clusters_are_found_as_scikit_learn_finds_them(seed, center):
    z, labels = planted(seed)
    alike = cluster.similarity(sums(z), center)
    found = cluster.spectral(alike, 4)
    theirs = SpectralClustering(4, affinity='precomputed', random_state=0).fit_predict(alike)
    assert adjusted_rand_score(labels, found.labels) == 1
    assert adjusted_rand_score(theirs, found.labels) == 1
    assert found.embedding.shape == (12, 4)
    np.testing.assert_allclose(np.linalg.norm(found.embedding, axis=1), 1)


@pytest.mark.parametrize('seed', range(4))
def test_kmeans_reaches_the_optimum_of_scikit_learn(seed):
    points, _ = make_blobs(60, 3, centers=5, cluster_std=0.6, random_state=seed)
    theirs = KMeans(5, n_init=20, random_state=0).fit(points)
    labels, inertia = cluster.kmeans(points, 5)
    assert adjusted_rand_score(theirs.labels_, labels) == 1
    np.testing.assert_allclose(inertia, theirs.inertia_)


def test_similarity_by_its_definitions():
    z = np.random.default_rng(3).normal(size=(50, 5)) + np.arange(5)
    unit = z / np.linalg.norm(z, axis=0)
    np.testing.assert_allclose(cluster.similarity(sums(z)), (1 + unit.T @ unit) / 2)
    np.testing.assert_allclose(
        cluster.similarity(sums(z), 'expert'), (1 + np.corrcoef(z.T)) / 2, atol=1e-12)
    own = z - z.mean(axis=1, keepdims=True)
    own /= np.linalg.norm(own, axis=0)
    np.testing.assert_allclose(
        cluster.similarity(sums(z), 'token'), (1 + own.T @ own) / 2, atol=1e-12)


def test_token_centring_does_not_see_an_offset_common_to_all_logits():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(40, 6))
    shifted = z + 5 * rng.normal(size=(40, 1))
    np.testing.assert_allclose(
        cluster.similarity(sums(shifted), 'token'), cluster.similarity(sums(z), 'token'))
    assert np.abs(cluster.similarity(sums(shifted)) - cluster.similarity(sums(z))).max() > 0.1


@pytest.mark.parametrize('center', ['none', 'expert'])
def test_a_column_without_norm_is_halfway_from_all_others(center):
    z = np.random.default_rng(0).normal(size=(30, 4))
    z[:, 1] = 0
    alike = cluster.similarity(sums(z), center)
    np.testing.assert_array_equal(alike[1], [0.5, 1, 0.5, 0.5])
    assert cluster.similarity(sums(np.zeros((5, 3))), center).tolist() == [
        [1, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 1]]


def test_a_constant_column_has_no_direction_once_experts_are_centred():
    z = np.random.default_rng(0).normal(size=(30, 3))
    z[:, 2] = 7.3
    np.testing.assert_array_equal(cluster.similarity(sums(z), 'expert')[2], [0.5, 0.5, 1])


@pytest.mark.parametrize('alike', [
    np.ones((7, 7)), np.eye(7), np.full((7, 7), 0.5) + 0.5 * np.eye(7), np.zeros((7, 7)),
    np.kron(np.eye(2), np.ones((4, 4)))[:7, :7],
], ids=['identical', 'unrelated', 'equal', 'zero', 'blocks'])
def test_every_group_has_a_member_whatever_the_similarity(alike):
    for groups in range(1, 8):
        found = cluster.spectral(alike, groups)
        assert sorted(set(found.labels.tolist())) == list(range(groups))
        assert np.isfinite(found.embedding).all() and np.isfinite(found.inertia)
        np.testing.assert_array_equal(cluster.spectral(alike, groups).labels, found.labels)


@pytest.mark.parametrize('seed', range(10))
def test_kmeans_never_loses_a_group_on_coinciding_points(seed):
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 2, (9, 2)).astype(float)
    for groups in range(1, 10):
        labels, inertia = cluster.kmeans(points, groups, seed=seed)
        assert sorted(set(labels.tolist())) == list(range(groups))
        # Not above the inertia of the distinct points, once there are groups for all of them.
        if groups >= len(np.unique(points, axis=0)):
            assert inertia == 0


def test_scipys_kmeans_loses_groups_and_stops_short():
    """Why k-means is written here: nine points in three places, and a run without restarts."""
    points = np.repeat(np.eye(3), 3, axis=0)
    with pytest.warns(UserWarning, match='clusters is empty'):
        labels = kmeans2(points, 4, minit='++', rng=0)[1]
    assert len(set(labels.tolist())) == 3 and len(set(cluster.kmeans(points, 4)[0].tolist())) == 4
    with pytest.raises(ClusterError, match='clusters is empty'):
        kmeans2(points, 4, minit='++', missing='raise', rng=0)
    blobs, _ = make_blobs(60, 3, centers=5, cluster_std=0.6, random_state=0)
    centers, labels = zip(*(kmeans2(blobs, 5, iter=300, minit='++', rng=seed)
                            for seed in range(10)), strict=True)
    inertia = [((blobs - c[k]) ** 2).sum() for c, k in zip(centers, labels, strict=True)]
    assert max(inertia) > 2 * cluster.kmeans(blobs, 5)[1]


@pytest.mark.parametrize('seed', range(5))
def test_renaming_experts_renames_the_clusters(seed):
    z, _ = planted(seed)
    order = np.random.default_rng(seed).permutation(z.shape[1])
    plain = cluster.spectral(cluster.similarity(sums(z)), 4).labels
    renamed = cluster.spectral(cluster.similarity(sums(z[:, order])), 4).labels
    assert adjusted_rand_score(plain[order], renamed) == 1


def test_groups_are_numbered_by_their_smallest_member():
    assert cluster.canonical(np.array([2, 0, 2, 1, 0])).tolist() == [0, 1, 0, 2, 1]
    labels = cluster.spectral(cluster.similarity(sums(planted(0)[0])), 4).labels
    first = [int(np.flatnonzero(labels == g)[0]) for g in range(4)]
    assert first == sorted(first)


def test_as_many_groups_as_experts_are_the_experts():
    alike = cluster.similarity(sums(planted(1)[0]))
    assert cluster.spectral(alike, 12).labels.tolist() == list(range(12))
    assert cluster.spectral(alike, 1).labels.tolist() == [0] * 12


def test_nearest_keeps_centres_apart_and_breaks_ties_low():
    alike = np.ones((4, 4))
    assert cluster.nearest(alike, np.array([3, 1])).tolist() == [0, 0, 0, 1]
    alike[0, 3] = 2
    assert cluster.nearest(alike, np.array([1, 3])).tolist() == [1, 0, 0, 1]


def test_top_is_ascending_and_stable():
    assert top(np.array([1, 3, 3, 0, 3]), 2).tolist() == [1, 2]
    assert top(np.zeros(4), 3).tolist() == [0, 1, 2]


def test_kmeans_refuses_more_groups_than_points():
    with pytest.raises(ValueError, match='4 groups of 3 points'):
        cluster.kmeans(np.zeros((3, 2)), 4)


@pytest.mark.parametrize('count, width, clusters, spread', [
    (128, 8, 64, 0.3), (128, 16, 12, 1.5), (96, 4, 24, 0.2)])
@pytest.mark.parametrize('seed', range(3))
def test_many_clusters_are_found_within_a_hundredth_of_scikit_learn(
        count, width, clusters, spread, seed):
    points, _ = make_blobs(count, width, centers=clusters, cluster_std=spread, random_state=seed)
    theirs = KMeans(clusters, n_init=20, random_state=0).fit(points).inertia_
    assert cluster.kmeans(points, clusters, seed=seed)[1] <= 1.01 * theirs


@pytest.mark.parametrize('seed', range(8))
def test_the_order_of_points_without_clusters_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(31, 6))
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    labels, inertia = cluster.kmeans(points, 7)
    for _ in range(4):
        order = rng.permutation(31)
        found, same = cluster.kmeans(points[order] @ turn, 7)
        assert adjusted_rand_score(labels[order], found) == 1
        np.testing.assert_allclose(same, inertia)
