"""Optimal brain surgeon along the inputs: prune, and let later inputs make up for it.

For one matrix W [in, out] with inputs x, the error is |x W - x W'|^2 = tr (W - W')^T H (W - W'),
H = sum x x^T. Inputs are visited in order; zeroing w_j and changing the inputs after it for the
least error takes the j-th row of U, H^-1 = U^T U with U upper triangular (Frantar and Alistarh
2023). Everything in float64.
"""

from collections.abc import Callable

import numpy as np
from scipy.linalg import cho_solve

from prune.weights.cut import lowest


def factor(gram: np.ndarray, damping: float, tries: int) -> np.ndarray | None:
    """U [in, in] of a damped Gram matrix [in, in]; None if it stays singular.

    damping: share of the mean of the diagonal that is added to it, ten times as much after each
    failure, `tries` times. An input that was always zero counts as of mean square.
    """
    gram, diagonal = gram.copy(), np.diagonal(gram)
    dead = diagonal == 0
    mean = diagonal[~dead].mean() if not dead.all() else 1.0
    np.fill_diagonal(gram, np.where(dead, mean, diagonal))
    for attempt in range(tries):
        try:
            damped = gram + np.eye(len(gram)) * (damping * 10**attempt * mean)
            inverse = cho_solve((np.linalg.cholesky(damped), True), np.eye(len(gram)))
            upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(upper).all():
            return upper
    return None


def solve(
    weights: np.ndarray,
    upper: np.ndarray,
    count: Callable[[int, int], int],
    unit: int,
    block: int,
) -> tuple[np.ndarray, np.ndarray]:
    """(mask bool [in, out], new weights [in, out], zero outside the mask).

    In each `unit` of inputs [start, stop) every output loses the count(start, stop) inputs with the
    least w^2 / U_jj^2 of the weights as they then are. block: inputs after which the rest is
    updated at once, a multiple of `unit`; it changes nothing but speed.
    """
    w = weights.astype(np.float64)
    gone = np.zeros(w.shape, bool)
    for start in range(0, len(w), block):
        stop = min(start + block, len(w))
        errors = np.zeros((stop - start, w.shape[1]))
        for j in range(start, stop):
            if (j - start) % unit == 0:
                end = min(j + unit, stop)
                loss = np.square(w[j:end] / np.diagonal(upper)[j:end, None])
                gone[j:end] = lowest(loss, count(j, end), axis=0)
            errors[j - start] = np.where(gone[j], w[j], 0.0) / upper[j, j]
            w[j:stop] -= upper[j, j:stop, None] * errors[j - start]
        w[stop:] -= upper[start:stop, stop:].T @ errors
    return ~gone, np.where(gone, 0.0, w)
