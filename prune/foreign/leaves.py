"""Where the arrays of a foreign model are, and how they are turned into ours and back.

Letters: E experts, D model width, F expert hidden width.
"""

import dataclasses
import difflib
import itertools
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

EXPERT = '{e}'
Leaves = Mapping[str, Any]
Shape = tuple[int | None, ...]  # None: any size


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An array of a foreign MoE layer: its path under the layer, and what its axes are.

    axis: the expert axis, as in the array of one layer (-1: the last). An '{e}' in the path instead
    means that every expert has an array of its own, numbered from 0. transposed: the other two axes
    are the other way round, (F, D) for gate and up, (D, F) for down.
    """

    path: str
    axis: int = 0
    transposed: bool = False

    def __post_init__(self) -> None:
        if EXPERT in self.path and self.axis:
            raise ValueError(f'Leaf({self.path!r}): give {EXPERT} in the path, an array for each '
                             'expert, or axis=, one array for all')

    def order(self, ndim: int) -> tuple[int, ...]:
        """The foreign axes in our order: experts, then (D, F), (F, D) or none."""
        rest = [a for a in range(ndim) if a != self.axis % ndim]
        return (self.axis % ndim, *(reversed(rest) if self.transposed else rest))


class Place(NamedTuple):
    """One MoE layer: the path of its subtree, and its place on the axis that stacks layers."""

    prefix: str
    index: int | None = None
    axis: int = 0

    def path(self, leaf: Leaf, expert: int | str = EXPERT) -> str:
        """The full path of a leaf, or of one expert's."""
        return f'{self.prefix}/{leaf.path}'.lstrip('/').replace(EXPERT, str(expert))


def read(leaves: Leaves, place: Place, leaf: Leaf, shape: Shape) -> Any:
    """A leaf of one layer with experts first; ValueError if it is missing or not of `shape`.

    shape: ours, of which [0] must be known where each expert has an array of its own.
    """
    if EXPERT not in leaf.path:
        path = place.path(leaf)
        array = _one_layer(_found(leaves, path), place)
        _check(path, leaf, tuple(array.shape), shape)
        return jnp.transpose(array, leaf.order(array.ndim))
    parts = []
    for e in range(shape[0] or 0):
        path = place.path(leaf, e)
        part = _one_layer(_found(leaves, path), place)
        _check(path, leaf, (1, *part.shape), (1, *shape[1:]))
        parts.append(part)
    if place.path(leaf, len(parts)) in leaves:
        raise ValueError(f'{place.path(leaf, len(parts))} is there, and the router chooses among '
                         f"{len(parts)} experts; is the router's axis right?")
    stacked = jnp.stack(parts)
    return jnp.transpose(stacked, leaf.order(stacked.ndim))


def write(leaves: Leaves, places: Sequence[Place], leaf: Leaf, arrays: Sequence[Any]
          ) -> dict[str, Any]:
    """Foreign arrays by path of what `read` gave of the layers that share a prefix."""
    place = places[0]
    arrays = [jnp.transpose(a, np.argsort(leaf.order(a.ndim)).tolist()) for a in arrays]
    if EXPERT in leaf.path:
        split = {place.path(leaf, e): [a[e] for a in arrays] for e in range(arrays[0].shape[0])}
    else:
        split = {place.path(leaf): arrays}
    return {path: _like(leaves[path], parts[0] if place.index is None else
                        jnp.stack(parts, place.axis)) for path, parts in split.items()}


def expert_subtrees(place: Place, leaf: Leaf, ids: range) -> Iterator[str]:
    """The paths at which the experts `ids` begin, where each has a subtree or array of its own."""
    head, _, tail = place.path(leaf).partition(EXPERT)
    return (f'{head}{e}{tail.partition("/")[0]}' for e in ids)


def without(tree: Any, gone: Collection[str], at: str = '') -> Any:
    """A copy of nested dicts and lists that lacks the subtrees at the paths `gone`."""
    if not any(path.startswith(at) for path in gone):
        return tree
    if not isinstance(tree, Mapping | list | tuple) or hasattr(tree, '_fields'):
        raise ValueError(f'{at}: experts with subtrees of their own must stand in dicts or lists, '
                         f'not in a {type(tree).__name__}')
    named = isinstance(tree, Mapping)
    kept = {key: without(child, gone, f'{at}{key}/')
            for key, child in (tree.items() if named else enumerate(tree))
            if f'{at}{key}' not in gone}
    if not named:
        return cast(Any, type(tree))(kept.values())
    return tree.__class__(tree.default_factory, kept) if isinstance(tree, defaultdict) else (
        cast(Any, type(tree))(kept))


def _found(leaves: Leaves, path: str) -> Any:
    if path in leaves:
        return leaves[path]
    near = difflib.get_close_matches(path, leaves, n=3, cutoff=0.3) or list(leaves)[:3]
    raise ValueError(f'the parameters have no array {path!r}; near: {", ".join(near)}')


def _one_layer(array: Any, place: Place) -> Any:
    wide = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue] (a flag)
    if getattr(array, 'dtype', None) == np.float64 and not wide:
        raise ValueError(f'{place.prefix}: arrays of float64, which JAX would cut to float32; cast '
                         'them to float32 first')
    array = jnp.asarray(array)
    return array if place.index is None else jnp.take(array, place.index, axis=place.axis)


def _check(path: str, leaf: Leaf, found: tuple[int, ...], wanted: Shape) -> None:
    """Refuse a shape that does not fit, with the axes that would."""
    within = -len(found) <= leaf.axis < len(found)
    if len(found) == len(wanted) and within and _fits(leaf, found, wanted):
        return
    own = EXPERT in leaf.path
    hints = [f'axis={a}, transposed={t}' for a, t in itertools.product(
        range(1 if own else len(found)), (False, True) if len(found) == 3 else (False,))
        if len(found) == len(wanted) and _fits(Leaf('', a, t), found, wanted)]
    shown = ', '.join('any' if n is None else str(n) for n in wanted[own:])
    read_as = f'axis={leaf.axis}, transposed={leaf.transposed}'
    raise ValueError(
        f'{path}: shape {found[own:]} with {read_as} does not read as [{shown}]'
        + (f'; {" or ".join(hints)} would' if hints else
           f', {"" if own else "experts first, "}nor in any other order of its axes'))


def _fits(leaf: Leaf, found: tuple[int, ...], wanted: Shape) -> bool:
    ours = (found[a] for a in leaf.order(len(found)))
    return all(n is None or n == m for m, n in zip(ours, wanted, strict=True))


def _like(old: Any, new: Any) -> Any:
    """`new` as the kind of array that `old` is."""
    return np.asarray(new).astype(old.dtype) if isinstance(old, np.ndarray) else new
