"""The best of a layer's experts, within router groups."""

import numpy as np


def top(scores: np.ndarray, count: int, groups: int = 1) -> np.ndarray:
    """Ids of the `count` highest scores, ascending; ties, the lowest index.

    With router groups (equal blocks of experts), the same number from each.
    """
    blocks = np.asarray(scores, np.float64).reshape(groups, -1)
    best = np.argsort(-blocks, axis=1, kind='stable')[:, :count // groups]
    return np.sort((best + np.arange(groups)[:, None] * blocks.shape[1]).ravel())
