"""The best one-to-one assignment of the rows of a large profit matrix to its columns, exactly.

scipy's solver is exact, and slow where many rows want the same columns. Two steps help it and keep
the answer optimal. Where every row has a best column of its own, that is the answer. Otherwise
prices u_i + v_j are taken off the profits first: they change the total of every assignment by the
same amount, so the best one stays the best, and good prices leave the solver little to do. They
come from Sinkhorn's scaling at falling temperature (Cuturi 2013, "Sinkhorn Distances"), whose
dual variables tend to the optimal prices; how far it gets decides the time, never the answer.

Letters: n rows and columns.
"""

import numpy as np
from scipy.optimize import linear_sum_assignment

# Temperatures in units of what a row's best profit stands above the mean, and steps at each.
TEMPERATURES = (0.25, 0.08, 0.025, 0.008, 0.0025, 0.0008, 0.00025)
STEPS = 8
# Outside, float32 would underflow or overflow on the way, and the solver starts without prices.
RANGE = (1e-30, 1e30)
LEAST = np.float32(1e-30)


def assign(profit: np.ndarray) -> np.ndarray:
    """The order [n] that maximizes sum_i profit[i, order[i]], for a finite float32 profit [n, n].

    Takes 12 n^2 bytes beside the profit at most. Raises ValueError unless it is square.
    """
    if profit.ndim != 2 or profit.shape[0] != profit.shape[1]:
        raise ValueError(f'assign: profit has shape {profit.shape}; it must be [n, n]')
    best = np.argmax(profit, axis=1)
    if np.bincount(best).max() == 1:
        return best
    u, v = prices(profit)
    cost = np.add.outer(u.astype(np.float64), v.astype(np.float64))
    cost -= profit
    return linear_sum_assignment(cost)[1]


def prices(profit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearly optimal prices u [n], v [n] float32: profit <= u_i + v_j, about equal where matched.

    All zero where the profits give no scale.
    """
    u = profit.max(axis=1)
    scale = float(u.mean(dtype=np.float64) - profit.mean(dtype=np.float64))
    if not RANGE[0] < scale < RANGE[1]:
        return np.zeros_like(u), np.zeros_like(u)
    v = (profit - u[:, None]).max(axis=0)
    for temperature in TEMPERATURES:
        # Einsum, not BLAS, whose own threads and those of the caller would wait for each other.
        kernel, peak = _kernel(profit, u, v, scale * temperature)
        y = np.ones_like(v)
        for _ in range(STEPS):
            x = 1 / np.maximum(np.einsum('ij,j->i', kernel, y), LEAST)
            y = 1 / np.maximum(np.einsum('i,ij->j', x, kernel), LEAST)
        u += peak - np.float32(scale * temperature) * np.log(x)
        v -= np.float32(scale * temperature) * np.log(y)
    return u, v


def _kernel(
    profit: np.ndarray, u: np.ndarray, v: np.ndarray, temperature: float
) -> tuple[np.ndarray, np.ndarray]:
    """exp((profit - u - v - peak) / temperature) [n, n], and the peak [n] that makes rows reach 1.
    """
    kernel = profit - u[:, None]
    kernel -= v
    peak = kernel.max(axis=1)
    kernel -= peak[:, None]
    kernel *= np.float32(1 / temperature)
    return np.exp(kernel, out=kernel), peak
