"""Projection of merged matrices on the directions that their members share (Sub-MoE).

Letters: E experts before, G after, A rows and B columns of a matrix of one expert.
"""

import jax
import jax.numpy as jnp
import numpy as np


def project(
    old_leaf: jax.Array, members: np.ndarray, mixed: jax.Array, rank: int
) -> jax.Array:
    """mixed [G, A, B], each on the first `rank` left singular directions of its members' matrices.

    old_leaf [E, A, B]: the experts as they were mixed, hidden units in their new order. members
    [G, E] bool: who is in a group (`mix != 0`). With U the first `rank` left singular vectors of
    the members side by side, [W_1 ... W_n], the result is U U^T mixed, in float32 and cast back. A
    group of one stays bit for bit, so does everything at rank A or more, and so do biases [E, A].
    """
    if mixed.ndim != 3 or rank >= mixed.shape[1]:
        return mixed
    return jnp.stack([
        _project(old_leaf[np.flatnonzero(ids)], mixed[g], rank) if ids.sum() > 1 else mixed[g]
        for g, ids in enumerate(np.asarray(members, bool))
    ])


def directions(matrices: jax.Array, rank: int) -> jax.Array:
    """The first `rank` left singular vectors [A, rank] of matrices [n, A, B] side by side.

    They are eigenvectors of sum_e W_e W_e^T, an [A, A] matrix however many members there are;
    directions below 3e-4 of the largest singular value drown in float32.
    """
    matrices = matrices.astype(jnp.float32)
    gram = jnp.einsum('nab,ncb->ac', matrices, matrices, precision=jax.lax.Precision.HIGHEST)
    return jnp.linalg.eigh(gram)[1][:, ::-1][:, :rank]


def _project(matrices: jax.Array, merged: jax.Array, rank: int) -> jax.Array:
    basis = directions(matrices, rank)
    exact = jax.lax.Precision.HIGHEST
    inside = jnp.matmul(basis.T, merged.astype(jnp.float32), precision=exact)
    return jnp.matmul(basis, inside, precision=exact).astype(merged.dtype)
