"""Masks over the experts' matrices, one bit a weight, and how sparse a model is.

G experts, D model width, F expert hidden width. Kernels are [in, out] (y = x W): gate and up are
[D, F], down is [F, D]. A packed mask is uint8 [G, ceil(in * out / 8)], set bits for weights that
stay, in the order of the flat matrix, the highest bit first.
"""


import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from moe_jax.base.tree import Params, host

LEAVES = ('gate', 'up', 'down')
PREFIX = 'layer_'


def matrix(leaf: str, width: int, hidden: int) -> tuple[int, int]:
    """(in, out) of one expert's matrix."""
    return (hidden, width) if leaf == 'down' else (width, hidden)


def pack(kept: np.ndarray) -> np.ndarray:
    """bool [G, in, out] as a packed mask."""
    return np.packbits(kept.reshape(len(kept), -1), axis=1)


def unpack(packed: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The mask bool [G, in, out] of matrices of `shape` (in, out)."""
    bits = np.unpackbits(packed, axis=1, count=math.prod(shape))
    return bits.view(bool).reshape(len(packed), *shape)


def zero_share(packed: np.ndarray, shape: tuple[int, int]) -> float:
    """Share of weights that a packed mask sets to zero."""
    kept = int(np.bitwise_count(packed).sum(dtype=np.int64))
    return 1.0 - kept / (len(packed) * math.prod(shape))


def masked(leaf: Any, packed: np.ndarray, values: np.ndarray | None = None) -> Any:
    """A leaf [G, in, out], or `values` cast to its dtype, with exact zeros where the mask has 0.

    What stays is bit for bit what it was; NaN under a zero of the mask does not survive.
    """
    leaf = jnp.asarray(leaf)
    bits = jnp.unpackbits(jnp.asarray(packed), axis=1, count=math.prod(leaf.shape[1:]))
    kept = leaf if values is None else jnp.asarray(values, leaf.dtype)
    return jnp.where(bits.reshape(leaf.shape) > 0, kept, jnp.zeros((), leaf.dtype))


def sparsity(params: Params) -> dict[int, dict[str, float]]:
    """{layer: {'gate', 'up' or 'down': share of exact zeros}} of the routed experts of a model."""
    shares = {}
    for name, block in params.items():
        if name.startswith(PREFIX) and 'moe' in block:
            experts = block['moe']['experts']
            shares[int(name.removeprefix(PREFIX))] = {
                leaf: _zeros(experts[leaf]) for leaf in LEAVES if leaf in experts}
    return dict(sorted(shares.items()))


def _zeros(leaf: Any) -> float:
    """Share of zeros, one expert at a time."""
    return sum(int((host(leaf, e) == 0).sum()) for e in range(len(leaf))) / math.prod(leaf.shape)


# Axis of the hidden units in each leaf under moe/experts; None: the leaf has none.
HIDDEN_AXIS = {
    'gate': 2,
    'up': 2,
    'gate_bias': 1,
    'up_bias': 1,
    'down': 1,
    'down_bias': None,
}


def hidden_axis(name: str) -> int | None:
    """Axis of the hidden units in the experts' leaf `name`; ValueError for an unknown leaf."""
    if name not in HIDDEN_AXIS:
        raise ValueError(
            f'moe/experts/{name}: not known where its hidden units are; add it to '
            f'prune.similarity.align.HIDDEN_AXIS (known: {", ".join(HIDDEN_AXIS)})'
        )
    return HIDDEN_AXIS[name]
