"""Line the hidden units of one expert up with another's, so that averaging them makes sense.

Hidden units of a feed-forward expert can be reordered freely. Given a reference J, expert y is
reordered by the permutation P that maximizes <up_J, up_y P^T> + <down_J, P down_y> (Ainsworth et
al. 2023, "Git Re-Basin", weight matching), a linear assignment problem. Biases of the hidden layer
(and a gate matrix, where experts have one) belong to the unit, so they count in the profit and move
with it; the output bias does not.

Letters: E experts, D model width, F expert hidden width.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.base.tree import Params, count_bytes, host
from prune.plans.masks import hidden_axis
from prune.similarity.assignment import assign


def permutations(
    experts: Params, reference_of: np.ndarray, active: np.ndarray | None = None
) -> np.ndarray:
    """Best order of every expert's hidden units, perms [E, F], against expert reference_of[e].

    Unit f of the reordered expert e is its old unit perms[e, f]. An expert that is its own
    reference, or is not active [E] bool, keeps its order. Exact, on the host, one expert a thread,
    in no more memory than the experts themselves take (or 16 F^2 bytes). O(F^3) per expert at
    worst, and O(F^2 D) where the hidden units leave no doubt. Raises ValueError for weights that
    are not finite.
    """
    count, hidden = experts['up'].shape[0], experts['up'].shape[2]
    perms = np.tile(np.arange(hidden, dtype=np.int32), (count, 1))
    wanted = np.asarray(reference_of) != np.arange(count)
    if active is not None:
        wanted &= active
    ids, threads = np.flatnonzero(wanted), _threads(experts)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(ids), threads):
            batch = ids[start:start + threads]
            # BLAS has threads of its own: products first, then one assignment a thread.
            profits = [_profit(experts, int(reference_of[e]), int(e)) for e in batch]
            perms[batch] = list(pool.map(assign, profits))
    return perms


def permute(experts: Params, perms: np.ndarray) -> dict[str, jax.Array]:
    """Reorder the hidden units of every expert: unit f of expert e becomes its old perms[e, f]."""
    index = jnp.asarray(perms, jnp.int32)
    moved = {}
    for name, leaf in experts.items():
        axis = hidden_axis(name)
        leaf = jnp.asarray(leaf)
        if axis is not None:
            shape = [leaf.shape[0]] + [1] * (leaf.ndim - 1)
            shape[axis] = leaf.shape[axis]
            leaf = jnp.take_along_axis(leaf, index.reshape(shape), axis=axis)
        moved[name] = leaf
    return moved


def _profit(experts: Params, reference: int, expert: int) -> np.ndarray:
    """Inner product of every hidden unit of the reference with every one of the expert, [F, F]."""
    with np.errstate(over='ignore', invalid='ignore'):
        profit = _units(experts, reference) @ _units(experts, expert).T
    if not np.isfinite(profit).all():
        raise ValueError(
            f'experts {expert} and {reference} cannot be aligned: some of their weights are not '
            'finite, or too large to multiply; look for NaN in the parameters, or plan without '
            'alignment'
        )
    return profit


def _threads(experts: Params) -> int:
    """One per core, and no more than have 16 F^2 bytes each in the experts' own size."""
    hidden = experts['up'].shape[2]
    return max(1, min(os.cpu_count() or 1, count_bytes(experts) // (16 * hidden**2)))


def _units(experts: Params, expert: int) -> np.ndarray:
    """All weights of each hidden unit of one expert as a row, [F, M] float32.

    <rows of the reference, rows of y> is then the whole profit matrix, all leaves at once.
    """
    rows = []
    for name in sorted(experts):
        axis = hidden_axis(name)
        if axis is not None:
            leaf = np.moveaxis(host(experts[name], expert).astype(np.float32), axis - 1, 0)
            rows.append(leaf.reshape(len(leaf), -1))
    return np.concatenate(rows, axis=1)
