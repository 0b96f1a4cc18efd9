"""What trains: whole leaves, the weights of some experts, low-rank adapters of frozen matrices.

While an update is computed all of it lies in one flat dict, name -> array, so that optimizer state
exists for nothing else. A whole leaf has its path as its name and is a leaf of the params. The
others are `parts`, kept beside the params:

    experts   the path of the leaf [E, ...], holding the n selected experts alone, [n, ...]
    adapters  path/a [..., in, r] and path/b [..., r, out]: W + (alpha / r) a b stands for W

Letters: E experts of a layer, r rank.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.base.tree import leaves_with_paths, map_with_path

Leaves = dict[str, jax.Array]

# Expressions for paths that are asked for often; any other serves as well.
TRAINABLE: dict[str, str] = {
    'all': r'',
    'routers': r'moe/router',
    'experts': r'moe/(experts/|constants$)',
    'shared': r'moe/shared/',
    'dense': r'(^|/)mlp/',
    'attention': r'(^|/)attn/',
    'norms': r'(^|/)(norm_\w+|[qk]v?_norm)/',
    'biases': r'(^|/|_)bias$',
    'embeddings': r'^(embed|head)/',
}
FACTORS = ('/a', '/b')  # what ends the names of an adapter's two matrices
NO_MATRIX = re.compile(r'(^|/)(bias|\w+_bias|scale|correction|sinks)$')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainable:
    """What trains, where an expression for whole leaves does not say it.

    leaves: expression searched in paths; these leaves train whole (None: none).
    experts: {layer: ids}, experts all of whose weights train (expert-specialised fine-tuning, Wang
      et al. 2024; `prune.select_experts` chooses them); the others of the layer stay as they are.
    rank: of low-rank adapters (Hu et al. 2021) on the matrices in whose paths `on` is found, stacks
      of experts [E, D, F] included; alpha: their scale is alpha / rank (None: 1). They are merged
      into the weights that a run returns.

    The three may be combined as long as no leaf falls under two of them. Raises ValueError for what
    trains nothing or cannot be.
    """

    leaves: str | None = None
    experts: Mapping[int, Sequence[int]] | tuple[tuple[int, tuple[int, ...]], ...] = ()
    rank: int = 0
    alpha: float | None = None
    on: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, 'experts', _canonical(self.experts))
        for name in ('leaves', 'on'):
            check_expression(f'Trainable.{name}', getattr(self, name))
        if not isinstance(self.rank, int) or self.rank < 0 or (self.rank > 0) != bool(self.on):
            raise ValueError(f'Trainable.rank={self.rank!r}, on={self.on!r}: adapters need a rank '
                             "of at least 1 and the paths of their matrices, e.g. on='attn/'")
        if self.alpha is not None and not (self.rank and math.isfinite(self.alpha)
                                           and self.alpha > 0):
            raise ValueError(f'Trainable.alpha={self.alpha!r}: must be positive, with a rank')
        if self.leaves is None and not self.experts and not self.rank:
            raise ValueError('Trainable: nothing trains; give leaves, experts, or rank and on')

    @property
    def scale(self) -> float:
        """What an adapter's product is multiplied with."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


Chosen = str | Trainable | None


def rule_of(trainable: Chosen) -> Trainable:
    """The `Trainable` of an expression, or of None: all leaves."""
    if isinstance(trainable, Trainable):
        return trainable
    return Trainable(leaves=trainable or '')


def select(params: Any, trainable: Chosen) -> Leaves:
    """The leaves that train whole, by path."""
    leaves, wanted = dict(leaves_with_paths(params)), rule_of(trainable).leaves
    if wanted is None:
        return {}
    return {path: leaves[path] for path in _found(leaves, wanted, 'trainable')}


def sliced(params: Any, trainable: Chosen) -> dict[str, tuple[int, ...]]:
    """The leaves of which only some experts train, path -> their ids."""
    ids = {f'layer_{i}/moe/experts': ids for i, ids in rule_of(trainable).experts}
    return {path: ids[head] for path, _ in leaves_with_paths(params)
            if (head := path.rpartition('/')[0]) in ids}


def adapted(params: Any, trainable: Chosen) -> tuple[str, ...]:
    """The paths of the matrices that have adapters."""
    on = rule_of(trainable).on
    return () if on is None else tuple(
        path for path, leaf in leaves_with_paths(params)
        if re.search(on, path) and leaf.ndim > 1 and not NO_MATRIX.search(path))


def check(params: Any, trainable: Chosen, keep_zeros: str | None = None) -> None:
    """Refuse, with ValueError, what does not fit these params."""
    rule, paths = rule_of(trainable), dict(leaves_with_paths(params))
    for i, ids in rule.experts:
        stacks = [path for path in paths if path.startswith(f'layer_{i}/moe/experts/')]
        count = paths[stacks[0]].shape[0] if stacks else 0
        if ids[-1] >= count:
            raise ValueError(f'Trainable.experts: layer {i} has {count} experts and no expert '
                             f'{ids[-1]}')
    whole, some, low = select(params, rule), sliced(params, rule), adapted(params, rule)
    if rule.on is not None and not low:
        _found(paths, rule.on, 'Trainable.on')
        raise ValueError(f'Trainable.on={rule.on!r}: matches no matrix; biases and norm scales '
                         'cannot have adapters: train them whole')
    for one, other, words in ((whole, some, 'leaves and experts'), (whole, low, 'leaves and on'),
                              (some, low, 'experts and on')):
        if both := sorted(set(one) & set(other)):
            raise ValueError(f'Trainable: {words} both name {both[0]}; a leaf trains in one way: '
                             'narrow one of the expressions')
    if keep_zeros is not None:
        found = _found({**whole, **some, **dict.fromkeys(low)}, keep_zeros, 'keep_zeros')
        if not any(kept(name, keep_zeros) for name in found):
            raise ValueError(f'keep_zeros={keep_zeros!r}: matches no matrix, only {found[0]}; '
                             'nothing else is pruned')


def effective(params: Any, leaves: Leaves, trainable: Chosen, keep_zeros: str | None = None) -> Any:
    """The weights that the model computes with: `params` with what trains, `leaves`, in its place.

    Each leaf that is not trained whole keeps its dtype; adapters are added in float32. Where
    `keep_zeros` is found in the path, an adapter leaves weights that are exactly 0 alone.
    """
    some, scale = sliced(params, trainable), rule_of(trainable).scale

    def one(path: str, leaf: jax.Array) -> jax.Array:
        if path in some and path in leaves:
            rows = leaves[path].astype(leaf.dtype)
            return jnp.asarray(leaf).at[jnp.asarray(some[path], jnp.int32)].set(
                rows, indices_are_sorted=True, unique_indices=True)
        if (factors := [leaves.get(path + end) for end in FACTORS])[0] is None:
            return leaves.get(path, leaf)
        return _adapted(leaf, *factors, scale, kept(path, keep_zeros))

    return map_with_path(one, params)


def put(params: Any, leaves: Leaves) -> Any:
    """`params` with the whole leaves at the given paths replaced."""
    return map_with_path(lambda path, leaf: leaves.get(path, leaf), params)


def kept(name: str, keep_zeros: str | None) -> bool:
    """Whether the exact zeros of what has this name stay.

    Only matrices are pruned: an adapter's own are not, and a bias that starts at zero has to learn.
    """
    if keep_zeros is None or name.endswith(FACTORS) or NO_MATRIX.search(name):
        return False
    return re.search(keep_zeros, name) is not None


def check_expression(name: str, expression: Any) -> None:
    """Refuse, with ValueError, what is no regular expression; None is fine."""
    if expression is None:
        return
    try:
        re.compile(expression)
    except (re.error, TypeError) as error:
        raise ValueError(
            f'{name}={expression!r} is not a regular expression: {error}') from None


def _adapted(w: jax.Array, a: jax.Array, b: jax.Array, scale: float, keep: bool) -> jax.Array:
    """W + scale a b in W's dtype; behind barriers, or fusions would round it in other ways."""
    a, b = jax.lax.optimization_barrier((a * scale, b))
    change = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    w32 = w.astype(jnp.float32)
    change = jnp.where(w32 != 0, change, 0.0) if keep else change
    return jax.lax.optimization_barrier((w32 + change).astype(w.dtype))


def _found(leaves: Mapping[str, Any], expression: str, what: str) -> list[str]:
    """The paths that an expression matches; ValueError if there are none."""
    paths = [path for path in leaves if re.search(expression, path)]
    if not paths:
        named = f'; did you mean train.TRAINABLE[{expression!r}]?' if expression in TRAINABLE else \
            f'; for common choices see train.TRAINABLE: {", ".join(TRAINABLE)}'
        raise ValueError(f'{what}={expression!r} matches none of the {len(leaves)} parameter '
                         f'paths, such as {", ".join(list(leaves)[:8])}{named}')
    return paths


def _canonical(experts: Any) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Selected experts as sorted tuples, which can be hashed; layers without any are left out."""
    pairs = dict(experts)
    found = []
    for layer in sorted(pairs):
        given = np.asarray(pairs[layer])
        ids = given.astype(int).tolist()
        whole = given.dtype.kind in 'iu' or not ids  # a mask of booleans is no list of ids
        if not whole or int(layer) < 0 or len(set(ids)) < len(ids) or min(ids, default=0) < 0:
            raise ValueError(f'Trainable.experts: layer {layer} has {given.tolist()}; give '
                             'distinct ids of experts, counted from 0')
        if ids:
            found.append((int(layer), tuple(sorted(ids))))
    return tuple(found)
