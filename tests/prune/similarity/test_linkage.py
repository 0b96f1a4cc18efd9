"""Agglomeration against scipy and scikit-learn, its ties by hand."""

import numpy as np
import pytest
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from prune.similarity.cluster import canonical
from prune.similarity.linkage import UPDATE, agglomerate, cut, join


def apart(seed, count=14, width=3):
    points = np.random.default_rng(seed).normal(size=(count, width))
    return points, squareform(pdist(points))


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('linkage', list(UPDATE))
def test_the_tree_is_scipys(seed, linkage):
    points, distance = apart(seed)
    tree = join(distance, linkage)
    theirs = hierarchy.linkage(pdist(points), linkage)
    np.testing.assert_allclose(tree.heights, theirs[:, 2], rtol=1e-10)
    for groups in range(1, 15):
        labels = hierarchy.fcluster(theirs, groups, 'maxclust')
        assert adjusted_rand_score(labels, cut(tree, groups)) == 1


@pytest.mark.parametrize('linkage', list(UPDATE))
def test_the_clusters_are_scikit_learns(linkage):
    for seed in range(3):
        points, distance = apart(seed, 20)
        for groups in (2, 5, 11):
            kind = {} if linkage == 'ward' else {'metric': 'precomputed'}
            model = AgglomerativeClustering(groups, linkage=linkage, **kind)
            theirs = model.fit_predict(points if linkage == 'ward' else distance)
            assert adjusted_rand_score(theirs, agglomerate(distance, groups, linkage)) == 1


@pytest.mark.parametrize('linkage', list(UPDATE))
def test_ties_join_the_lowest_pair_and_never_cost_a_group(linkage):
    tied = 1 - np.eye(5)
    assert join(tied, linkage).pairs[0].tolist() == [0, 1]
    for groups in range(1, 6):
        labels = agglomerate(tied, groups, linkage)
        assert sorted(set(labels.tolist())) == list(range(groups))
        assert agglomerate(np.zeros((5, 5)), groups, linkage).tolist() == [0] * (
            6 - groups) + list(range(1, groups))
    # scipy's cut by number loses groups here: all distances are equal.
    assert len(set(hierarchy.fcluster(
        hierarchy.linkage(np.zeros(10), linkage), 3, 'maxclust'))) == 1


@pytest.mark.parametrize(('linkage', 'line', 'groups', 'ours', 'theirs'), [
    ('average', [0, 1, 2, 0], 2, [0, 0, 1, 0], [0, 1, 1, 0]),
    ('complete', [0, 1, 2, 0], 2, [0, 0, 1, 0], [0, 1, 1, 0]),
    ('single', [0, 3, 4, 2], 3, [0, 1, 1, 2], [0, 1, 2, 1]),
    ('ward', [0, 3, 4, 2], 3, [0, 1, 1, 2], [0, 1, 2, 1]),
])
def test_scipy_breaks_ties_otherwise(linkage, line, groups, ours, theirs):
    """Two pairs are equally near: ours is the one with the lowest members."""
    points = np.array(line, np.float64)[:, None]
    assert agglomerate(squareform(pdist(points)), groups, linkage).tolist() == ours
    tree = hierarchy.linkage(pdist(points), linkage)
    assert canonical(hierarchy.cut_tree(tree, groups)[:, 0]).tolist() == theirs


def test_a_tree_by_hand():
    """Points 0, 1, 3, 7 on a line, by complete linkage."""
    line = np.array([0.0, 1, 3, 7])
    tree = join(np.abs(line[:, None] - line), 'complete')
    assert tree.pairs.tolist() == [[0, 1], [0, 2], [0, 3]]
    assert tree.heights.tolist() == [1, 3, 7]
    assert join(np.abs(line[:, None] - line), 'average').heights.tolist() == [1, 2.5, 17 / 3]
    assert cut(tree, 2).tolist() == [0, 0, 0, 1]


def test_complete_linkage_takes_any_sign():
    _, distance = apart(1)
    shifted = join(distance - 5, 'complete')
    plain = join(distance, 'complete')
    assert shifted.pairs.tolist() == plain.pairs.tolist()
    np.testing.assert_allclose(shifted.heights, plain.heights - 5)
    assert cut(shifted, 3).tolist() == cut(plain, 3).tolist()
    tree = hierarchy.linkage(squareform(distance) - 5, 'complete')
    for scipys_cut in (lambda: hierarchy.cut_tree(tree, 3),
                       lambda: hierarchy.fcluster(tree, 3, 'maxclust')):
        with pytest.raises(ValueError, match='negative distances'):
            scipys_cut()


@pytest.mark.parametrize('linkage', list(UPDATE))
def test_renaming_renames_and_the_input_stays(linkage):
    _, distance = apart(2)
    before, order = distance.copy(), np.random.default_rng(0).permutation(14)
    plain = agglomerate(distance, 4, linkage)
    renamed = agglomerate(distance[np.ix_(order, order)], 4, linkage)
    assert adjusted_rand_score(plain[order], renamed) == 1
    np.testing.assert_array_equal(distance, before)


def test_the_ends():
    _, distance = apart(3)
    assert agglomerate(distance, 14).tolist() == list(range(14))
    assert agglomerate(distance, 1).tolist() == [0] * 14
    assert agglomerate(np.zeros((1, 1)), 1).tolist() == [0]
