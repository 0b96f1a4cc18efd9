"""The leaves that train, resolved once against the params; state, step and forecast read them.

While an update is computed all that trains lies in one flat dict, name -> array, so that optimizer
state exists for nothing else. A leaf that trains whole has its path as its name and is a leaf of
the params; what trains of all others (`kinds`) are `parts`, kept beside the params.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from typing import cast

import jax

from moe_jax.base.tree import Params, leaves_with_paths, map_with_path
from train.trainable.kinds import Adapter, Kind, Leaves, Shape, Slice, Whole
from train.trainable.trainable import TRAINABLE, Canonical, Chosen, Trainable, rule_of

NO_MATRIX = re.compile(r'(^|/)(bias|\w+_bias|scale|correction|sinks)$')


@dataclasses.dataclass(frozen=True)
class TrainedLeaf:
    """A leaf of the params that trains, and how.

    shape: of the leaf in the params. keep_zeros: whether its exact zeros stay, as only those of
    matrices can: a bias that starts at zero has to learn.
    """

    path: str
    shape: Shape
    kind: Kind
    keep_zeros: bool = False

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shape of each array that trains, by name."""
        return self.kind.shapes(self.path, self.shape)


@dataclasses.dataclass(frozen=True)
class TrainedLeaves:
    """All leaves that train; hashable, so that a step is compiled for it.

    leaves: those that train whole, then slices, then adapters, each kind in the order of the
    params. keep_zeros: the expression that `TrainedLeaf.keep_zeros` was resolved from.
    """

    leaves: tuple[TrainedLeaf, ...]
    keep_zeros: str | None = None

    def __hash__(self) -> int:
        return self._hash  # jit asks for it at every step, and there are hundreds of leaves

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.leaves, self.keep_zeros))

    @functools.cached_property
    def by_path(self) -> dict[str, TrainedLeaf]:
        return {leaf.path: leaf for leaf in self.leaves}

    @functools.cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shape of each array that trains, by name."""
        return {name: shape for leaf in self.leaves for name, shape in leaf.shapes.items()}

    def is_whole(self, path: str) -> bool:
        """Whether the leaf of this path trains whole."""
        return path in self.by_path and isinstance(self.by_path[path].kind, Whole)

    def zeros_stay(self, name: str) -> bool:
        """Whether the array that trains under this name keeps its exact zeros.

        An adapter's own matrices do not: they are not pruned.
        """
        return name in self.by_path and self.by_path[name].keep_zeros

    def select(self, params: Params) -> Leaves:
        """The leaves of params that train whole, by path."""
        return {path: leaf for path, leaf in leaves_with_paths(params) if self.is_whole(path)}

    def start(self, params: Params, seed: int) -> tuple[Leaves, Leaves]:
        """All arrays that train as they are before the first step, and those that are parts."""
        values, trained, parts = dict(leaves_with_paths(params)), {}, {}
        for leaf in self.leaves:
            arrays = leaf.kind.start(leaf.path, values[leaf.path], seed)
            trained |= arrays
            if not self.is_whole(leaf.path):
                parts |= arrays
        return trained, parts

    def effective(self, params: Params, trained: Leaves) -> Params:
        """The weights that the model computes with: `params` with `trained` in its place.

        trained: arrays by name; a leaf none of whose arrays is among them stays as it is. Each leaf
        that does not train whole keeps its dtype; adapters are added in float32.
        """
        def one(path: str, value: jax.Array) -> jax.Array:
            leaf = self.by_path.get(path)
            if leaf is None or not leaf.shapes.keys() <= trained.keys():
                return value
            return leaf.kind.merged(path, value, trained, leaf.keep_zeros)

        return map_with_path(one, params)


def put(params: Params, leaves: Leaves) -> Params:
    """`params` with the whole leaves at the given paths replaced."""
    return map_with_path(lambda path, leaf: leaves.get(path, leaf), params)


def resolve(params: Params, trainable: Chosen, keep_zeros: str | None = None) -> TrainedLeaves:
    """The leaves of params that train.

    params: a tree of arrays or of `jax.ShapeDtypeStruct`. keep_zeros: expression searched in paths;
    matrices it is found in keep their exact zeros. Raises ValueError for what does not fit.
    """
    rule = rule_of(trainable)
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves_with_paths(params)}
    kinds = (_whole(shapes, rule), _slices(shapes, rule), _adapters(shapes, rule))
    _check_disjoint(*kinds)
    leaves = [TrainedLeaf(path, shapes[path], kind)
              for one in kinds for path, kind in one.items()]
    if keep_zeros is not None:
        leaves = _keeping_zeros(leaves, keep_zeros)
    return TrainedLeaves(tuple(leaves), keep_zeros)


def _whole(shapes: Mapping[str, Shape], rule: Trainable) -> dict[str, Kind]:
    if rule.leaves is None:
        return {}
    return dict.fromkeys(_matching(shapes, rule.leaves, 'trainable'), Whole())


def _slices(shapes: Mapping[str, Shape], rule: Trainable) -> dict[str, Kind]:
    slices = {}
    for layer, ids in cast(Canonical, rule.experts):
        stacks = {path: shape for path, shape in shapes.items()
                  if path.startswith(f'layer_{layer}/moe/experts/')}
        count = next(iter(stacks.values()))[0] if stacks else 0
        if ids[-1] >= count:
            raise ValueError(f'Trainable.experts: layer {layer} has {count} experts and no expert '
                             f'{ids[-1]}')
        slices |= dict.fromkeys(stacks, Slice(ids))
    return slices


def _adapters(shapes: Mapping[str, Shape], rule: Trainable) -> dict[str, Kind]:
    if rule.on is None:
        return {}
    matrices = [path for path in _matching(shapes, rule.on, 'Trainable.on')
                if _is_matrix(path) and len(shapes[path]) > 1]
    if not matrices:
        raise ValueError(f'Trainable.on={rule.on!r}: matches no matrix; biases and norm scales '
                         'cannot have adapters: train them whole')
    return dict.fromkeys(matrices, Adapter(rule.rank, rule.scale))


def _check_disjoint(whole: Mapping[str, Kind], slices: Mapping[str, Kind],
                    adapters: Mapping[str, Kind]) -> None:
    for one, other, words in ((whole, slices, 'leaves and experts'),
                              (whole, adapters, 'leaves and on'),
                              (slices, adapters, 'experts and on')):
        if both := sorted(one.keys() & other.keys()):
            raise ValueError(f'Trainable: {words} both name {both[0]}; a leaf trains in one way: '
                             'narrow one of the expressions')


def _keeping_zeros(leaves: Iterable[TrainedLeaf], keep_zeros: str) -> list[TrainedLeaf]:
    """The leaves, with those marked whose zeros stay."""
    named = _matching([leaf.path for leaf in leaves], keep_zeros, 'keep_zeros')
    sparse = set(filter(_is_matrix, named))
    if not sparse:
        raise ValueError(f'keep_zeros={keep_zeros!r}: matches no matrix, only {named[0]}; '
                         'nothing else is pruned')
    return [dataclasses.replace(leaf, keep_zeros=leaf.path in sparse) for leaf in leaves]


def _is_matrix(path: str) -> bool:
    return NO_MATRIX.search(path) is None


def _matching(paths: Iterable[str], expression: str, what: str) -> list[str]:
    """The paths that an expression matches; ValueError if there are none."""
    paths = list(paths)
    if matching := [path for path in paths if re.search(expression, path)]:
        return matching
    hint = f'did you mean train.TRAINABLE[{expression!r}]?' if expression in TRAINABLE else \
        f'for common choices see train.TRAINABLE: {", ".join(TRAINABLE)}'
    raise ValueError(f'{what}={expression!r} matches none of the {len(paths)} parameter '
                     f'paths, such as {", ".join(paths[:8])}; {hint}')
