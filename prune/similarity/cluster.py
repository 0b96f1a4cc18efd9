"""Similarity of experts, from their router logits or outputs, and partitions made from it.

Letters: E experts, G groups, T tokens, H the [T, E] matrix of router logits.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

Center = Literal['none', 'expert', 'token']
# Statistics that each way of centring reads beside the logit Gram.
CENTER_NEEDS = {'none': (), 'expert': ('tokens', 'logit_sum'), 'token': ()}
RESTARTS = 20
MAX_STEPS = 300


class Clusters(NamedTuple):
    """labels [E] (groups numbered by smallest member), k-means inertia, embedding [E, G]."""

    labels: np.ndarray
    inertia: float
    embedding: np.ndarray


def similarity(stats: Mapping[str, np.ndarray], center: Center = 'none') -> np.ndarray:
    """Cosine of the experts' logit columns over all tokens, mapped to [0, 1]: S [E, E].

    S = (1 + cos) / 2 with cos_ij = C_ij / sqrt(C_ii C_jj) and C = sum_t z_t z_t^T of raw logits
    ('none'), C - s s^T / T with s = sum_t z_t ('expert': correlation), or (I - 11^T/E) C
    (I - 11^T/E) ('token': unchanged by an offset common to all logits of a token, which softmax
    does not see). A column without norm has cosine 0 to every other one.
    """
    raw = np.asarray(stats['logit_gram'], np.float64)
    gram = _CENTER[center](raw, stats)
    # What centring leaves of a constant column is rounding error, not a direction.
    floor = 1e-5 * np.sqrt(max(float(np.diag(raw).max()), 0.0))
    return (1 + cosine(gram, floor)) / 2


def cosine(gram: np.ndarray, floor: float = 0.0) -> np.ndarray:
    """Cosines [E, E] of vectors whose inner products are `gram` [E, E], one on the diagonal.

    A vector of norm `floor` or less has cosine 0 to every other one.
    """
    norm = np.sqrt(np.maximum(np.diag(gram), 0))
    void = norm <= floor
    norm = np.where(void, 1, norm)
    return _symmetric(
        np.where(void[:, None] | void[None, :], 0, gram / norm[:, None] / norm[None, :]))


def mean_cosine(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Cosines [E, E] as means of sums over `count` tokens, [E, E] or one number; 0 over none."""
    count = np.broadcast_to(np.asarray(count, np.float64), total.shape)
    return _symmetric(np.where(count > 0, total, 0) / np.maximum(count, 1))


def embed(gram: np.ndarray) -> np.ndarray:
    """Points [E, E] whose inner products are `gram` [E, E], or come nearest where it is indefinite.
    """
    values, vectors = np.linalg.eigh(gram)
    return vectors * np.sqrt(np.maximum(values, 0))


def spectral(similarity_EE: np.ndarray, groups: int, *, seed: int = 0) -> Clusters:
    """Ng-Jordan-Weiss spectral clustering (NIPS 2001) of a similarity S [E, E] >= 0.

    The eigenvectors of the `groups` smallest eigenvalues of I - deg^-1/2 S deg^-1/2, rows scaled to
    length one, then k-means. Every group has a member, whatever S is; the same S gives the same
    labels.
    """
    degree = similarity_EE.sum(axis=1)
    scale = 1 / np.sqrt(np.where(degree > 0, degree, 1))
    affinity = scale[:, None] * similarity_EE * scale[None, :]
    vectors = np.linalg.eigh(affinity)[1][:, ::-1][:, :groups]
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    embedding = vectors / np.where(length > 0, length, 1)
    labels, inertia = kmeans(embedding, groups, seed=seed)
    return Clusters(labels, inertia, embedding)


def kmeans(
    points: np.ndarray, groups: int, *, seed: int = 0, restarts: int = RESTARTS
) -> tuple[np.ndarray, float]:
    """Lloyd's k-means from k-means++ seeds: labels [n] and inertia of the best restart.

    Exactly `groups` groups, none empty, even where points coincide. Points are taken in an order of
    their own, by their distances from all others, so that the partition does not depend on the
    order in which they are given; where that leaves a tie, the lowest index.

    Why not `scipy.cluster.vq.kmeans2`: it is one run without restarts, which often ends far above
    the least inertia, and where points coincide (experts without traffic) it returns fewer groups,
    or raises with missing='raise'. scikit-learn's KMeans would be a dependency at run time.
    """
    if not 1 <= groups <= len(points):
        raise ValueError(f'k-means: {groups} groups of {len(points)} points')
    rng = np.random.default_rng(seed)
    order = _own_order(points)
    points = points[order]
    best, best_inertia = np.arange(len(points)), np.inf
    for _ in range(restarts):
        labels = _lloyd(points, points[_plus_plus(points, groups, rng)])
        centers = _centers(points, labels, groups)
        inertia = float(((points - centers[labels]) ** 2).sum())
        # Restarts that find the same optimum differ by rounding; the first one stays.
        if not best_inertia < np.inf or inertia < best_inertia - 1e-9 * (1 + best_inertia):
            best, best_inertia = labels, inertia
    labels = np.empty_like(best)
    labels[order] = best
    return canonical(labels), best_inertia


def nearest(similarity_EE: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Labels [E]: each expert joins the most similar of the `centers` [G]; ties, the lowest one.

    A center always stays with itself; labels are positions in ascending `centers`.
    """
    centers = np.sort(np.asarray(centers))
    labels = np.argmax(similarity_EE[:, centers], axis=1)
    labels[centers] = np.arange(len(centers))
    return labels


def canonical(labels: np.ndarray) -> np.ndarray:
    """The same partition with groups numbered by their smallest member."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _symmetric(cosine_EE: np.ndarray) -> np.ndarray:
    """Rid of rounding: symmetric, within [-1, 1], one on the diagonal."""
    cosine_EE = np.clip((cosine_EE + cosine_EE.T) / 2, -1, 1)
    np.fill_diagonal(cosine_EE, 1)
    return cosine_EE


def _uncentered(gram: np.ndarray, stats: Mapping[str, np.ndarray]) -> np.ndarray:
    return gram


def _center_experts(gram: np.ndarray, stats: Mapping[str, np.ndarray]) -> np.ndarray:
    total = np.asarray(stats['logit_sum'], np.float64)
    return gram - np.outer(total, total) / float(stats['tokens'])


def _center_tokens(gram: np.ndarray, stats: Mapping[str, np.ndarray]) -> np.ndarray:
    gram = gram - gram.mean(axis=0, keepdims=True)
    return gram - gram.mean(axis=1, keepdims=True)


_CENTER = {'none': _uncentered, 'expert': _center_experts, 'token': _center_tokens}


def _own_order(points: np.ndarray) -> np.ndarray:
    """The order [n] of points by the sums of their distances, and of their squares, from all.

    These change neither with the order of the points nor with a rotation, up to rounding, which
    the sums are rid of.
    """
    square = np.maximum(_squares(points, points), 0)
    sums = np.stack([np.sqrt(square).sum(axis=1), square.sum(axis=1)])
    largest = np.maximum(np.abs(sums).max(axis=1, keepdims=True), 1e-300)
    first, second = np.round(sums / largest, 9)
    return np.lexsort((second, first))


def _squares(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Squared distances [n, m]."""
    return ((points[:, None, :] - others[None, :, :]) ** 2).sum(axis=2)


def _plus_plus(points: np.ndarray, groups: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ (Arthur and Vassilvitskii 2007): distinct ids, even where points coincide.

    Of several candidates for each next seed the one that leaves the least is taken (their section
    6), or clusters that are many and apart are missed.
    """
    chosen = [int(rng.integers(len(points)))]
    distance = _squares(points, points[chosen])[:, 0]
    candidates = 2 + int(np.log(groups))
    while len(chosen) < groups:
        distance[chosen] = 0
        total = distance.sum()
        if total > 0:
            drawn = rng.choice(len(points), size=candidates, p=distance / total)
            left = np.minimum(distance[:, None], _squares(points, points[drawn]))
            best = int(np.argmin(left.sum(axis=0)))
            pick, distance = int(drawn[best]), left[:, best]
        else:
            pick = int(np.setdiff1d(np.arange(len(points)), chosen)[0])
        chosen.append(pick)
    return np.array(chosen)


def _lloyd(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Labels [n] where Lloyd's iteration from centers [G, D] comes to rest."""
    groups, labels = len(centers), np.full(len(points), -1)
    for _ in range(MAX_STEPS):
        distance = _squares(points, centers)
        new = _fill_empty(np.argmin(distance, axis=1), distance, groups)
        if np.array_equal(new, labels):
            break
        labels, centers = new, _centers(points, new, groups)
    return labels


def _fill_empty(labels: np.ndarray, distance: np.ndarray, groups: int) -> np.ndarray:
    """Give each empty group the point farthest from its center, out of a group of two or more."""
    labels = labels.copy()
    own = distance[np.arange(len(labels)), labels]
    for g in range(groups):
        size = np.bincount(labels, minlength=groups)
        if size[g] == 0:
            moved = int(np.argmax(np.where(size[labels] > 1, own, -1)))
            labels[moved], own[moved] = g, 0
    return labels


def _centers(points: np.ndarray, labels: np.ndarray, groups: int) -> np.ndarray:
    """Means [G, D] of the points [n, D] of each group."""
    member = np.arange(groups)[:, None] == labels[None, :]
    return (member @ points) / member.sum(axis=1, keepdims=True)
