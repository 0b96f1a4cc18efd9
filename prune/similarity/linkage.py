"""Agglomerative clustering from distances: the two nearest clusters are joined, again and again.

Distances of a joined cluster follow from those of its parts (Lance and Williams 1967). Ties go to
the pair with the lowest members, so that equal inputs give equal trees.

Why not `scipy.cluster.hierarchy`: without ties its trees are these. Experts that coincide or lie
evenly are common (upcycled ones, unused ones), and there its order of joining follows its
algorithm, `fcluster(..., 'maxclust')` loses groups, and neither it nor `cut_tree` takes the
negative distances that coactivation makes. Letters: E experts, G groups.
"""

from typing import Literal, NamedTuple

import numpy as np

from prune.similarity.cluster import canonical

Linkage = Literal['average', 'single', 'complete', 'ward']


class Tree(NamedTuple):
    """pairs [E - 1, 2]: the smallest members of the clusters joined; heights [E - 1]: how far apart
    they were. In the order of joining."""

    pairs: np.ndarray
    heights: np.ndarray


def agglomerate(distance: np.ndarray, groups: int, linkage: Linkage = 'average') -> np.ndarray:
    """Labels [E] of exactly `groups` clusters by the distances [E, E]; 'ward' wants Euclidean ones.
    """
    return cut(join(distance, linkage), groups)


def join(distance: np.ndarray, linkage: Linkage) -> Tree:
    """The whole tree of a symmetric distance matrix [E, E], in O(E^3)."""
    apart, update = np.array(distance, np.float64), UPDATE[linkage]
    np.fill_diagonal(apart, np.inf)
    size, pairs, heights = np.ones(len(apart)), [], []
    for _ in range(len(apart) - 1):
        i, j = divmod(int(np.argmin(apart)), len(apart))
        pairs.append((i, j))
        heights.append(apart[i, j])
        other = np.isfinite(apart[i]) & np.isfinite(apart[j])
        joined = np.full(len(apart), np.inf)
        joined[other] = update(apart[i, other], apart[j, other], apart[i, j],
                               size[i], size[j], size[other])
        apart[i], apart[:, i] = joined, joined
        apart[j], apart[:, j] = np.inf, np.inf
        size[i] += size[j]
    return Tree(np.array(pairs, int).reshape(-1, 2), np.array(heights))


def cut(tree: Tree, groups: int) -> np.ndarray:
    """Labels [E] after the first joins, so many that `groups` clusters are left."""
    labels = np.arange(len(tree.pairs) + 1)
    for i, j in tree.pairs[:len(labels) - groups]:
        labels[labels == j] = i
    return canonical(labels)


def _average(
    di: np.ndarray, dj: np.ndarray, dij: float, ni: float, nj: float, nk: np.ndarray
) -> np.ndarray:
    return (ni * di + nj * dj) / (ni + nj)


def _single(
    di: np.ndarray, dj: np.ndarray, dij: float, ni: float, nj: float, nk: np.ndarray
) -> np.ndarray:
    return np.minimum(di, dj)


def _complete(
    di: np.ndarray, dj: np.ndarray, dij: float, ni: float, nj: float, nk: np.ndarray
) -> np.ndarray:
    return np.maximum(di, dj)


def _ward(
    di: np.ndarray, dj: np.ndarray, dij: float, ni: float, nj: float, nk: np.ndarray
) -> np.ndarray:
    total = (ni + nk) * di**2 + (nj + nk) * dj**2 - nk * dij**2
    return np.sqrt(np.maximum(total, 0) / (ni + nj + nk))


# Distance to cluster k of the join of i and j, from those to the parts and the sizes n.
UPDATE = {'average': _average, 'single': _single, 'complete': _complete, 'ward': _ward}
