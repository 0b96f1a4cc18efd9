"""Parameter trees: take and mix experts, count parameters, read and match paths, fetch."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

Tree = Any
Params = Mapping[str, Any]  # a tree of parameters or of a part of them: arrays under nested names


def take(tree: Tree, ids: Any) -> Tree:
    """Select rows `ids` [G] of axis 0 of every leaf: dropping experts of an expert-major tree."""
    index = jnp.asarray(ids, jnp.int32)
    return jax.tree.map(lambda leaf: jnp.take(jnp.asarray(leaf), index, axis=0), tree)


def mix(tree: Tree, matrix_GE: Any) -> Tree:
    """Combine axis 0 of every leaf with a matrix [G, E]: merging experts of an expert-major tree.

    leaf'[g] = sum_e matrix[g, e] * leaf[e], summed in float32 and cast back to the leaf's dtype.
    A one-hot matrix is `take`.
    """
    matrix = jnp.asarray(matrix_GE, jnp.float32)

    def combine(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        mixed = jnp.tensordot(
            matrix, leaf.astype(jnp.float32), axes=1, precision=jax.lax.Precision.HIGHEST
        )
        return mixed.astype(leaf.dtype)

    return jax.tree.map(combine, tree)


def host(leaf: Any, index: Any = ...) -> np.ndarray:
    """leaf[index] in numpy; of an array in this machine's own memory, a view without a copy.

    Elsewhere only that share is fetched: numpy.asarray of the whole leaf would stay cached in it.
    """
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)[index]
    if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        raise ValueError(f'weights {leaf.shape} lie on the devices of several processes, and this '
                         'method reads them on the host: make the plan in one process, save it, '
                         'and apply it here')
    devices = leaf.devices()
    if len(devices) == 1 and next(iter(devices)).platform == 'cpu':
        return np.asarray(leaf)[index]
    return np.asarray(leaf[index])


def leaves_with_paths(tree: Tree) -> Iterator[tuple[str, Any]]:
    """Every leaf with its path, e.g. `layer_0/moe/router/kernel`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator='/'), leaf


def map_with_path(function: Callable[[str, Any], Any], tree: Tree) -> Tree:
    """`jax.tree.map` whose function also gets the leaf's path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(
            jax.tree_util.keystr(path, simple=True, separator='/'), leaf
        ),
        tree,
    )


def has_values(tree: Tree) -> bool:
    """Whether every leaf can be looked at: none is a `jax.ShapeDtypeStruct` or of a trace."""
    return not any(isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct)
                   for leaf in jax.tree.leaves(tree))


def on_shapes(run: Callable[[Tree], tuple[Tree, Any]], tree: Tree) -> tuple[Tree, Any]:
    """run(tree) -> (new tree, anything); of shapes alone, the new tree's shapes."""
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree)):
        return run(tree)
    rest = []

    def arrays(tree: Tree) -> Tree:
        new, other = run(tree)
        rest.append(other)
        return new

    return jax.eval_shape(arrays, tree), rest[0]


def count_params(tree: Tree) -> int:
    """Number of scalars in a tree of arrays or of `jax.ShapeDtypeStruct`."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def count_bytes(tree: Tree) -> int:
    """Bytes of a tree of arrays or of `jax.ShapeDtypeStruct`."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def at(tree: Mapping[str, Any], path: str, function: Callable[[Any], Any]) -> dict[str, Any]:
    """A copy of a nested dict with the subtree at `path` ('a/b/c') replaced by function(it)."""
    head, _, rest = path.partition('/')
    if head not in tree:
        raise KeyError(f'no {head!r} here; there are {sorted(tree)}')
    return {**tree, head: at(tree[head], rest, function) if rest else function(tree[head])}
