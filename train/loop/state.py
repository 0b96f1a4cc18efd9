"""The state of a run, as one pytree: steps done, parameters, optimizer state, parts that train.

Letters: E experts, r rank of an adapter.
"""

import functools
import logging
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.base import sharding
from moe_jax.base.sharding import first_device, replicated
from moe_jax.base.tree import leaves_with_paths, map_with_path
from train.loop.options import TrainOptions
from train.optim.adamw import Recipe, adamw, moments
from train.trainable.trainable import (
    Chosen,
    Leaves,
    adapted,
    check,
    effective,
    kept,
    rule_of,
    select,
    sliced,
)

ZEROS = 0.05  # more exact zeros than this in an expert's matrices were made by pruning

log = logging.getLogger(__name__)


class TrainState(NamedTuple):
    """step int32 scalar (updates done), params (leaves trained whole float32), opt_state (optax).

    parts: what trains and is no whole leaf, by name, float32 (`trainable`).
    """

    step: jax.Array
    params: Any
    opt_state: Any
    parts: Leaves


def init_state(params: Any, options: TrainOptions) -> TrainState:
    """The state before the first step: a copy of `params`, and zero moments for what trains.

    What trains is held in float32, so that small updates are not lost in bfloat16; frozen leaves,
    and those of which some experts train, keep their dtype. The copy lets the step donate its state
    and leave `params` alone. Raises ValueError where the options do not fit the params.
    """
    check(params, options.trainable, options.keep_zeros)
    trained = select(params, options.trainable)
    devices = replicated(next(iter(trained.values()), jax.tree.leaves(params)[0]))
    params = map_with_path(lambda path, leaf: _own(leaf, path in trained), params)
    parts = _slices(params, options) | _adapters(params, options)
    leaves = select(params, options.trainable) | parts
    _warn_of_zeros(params, leaves, options)
    zero = jnp.zeros((), jnp.float32)
    opt_state = adamw(recipe(options), zero, zero, zero).init(leaves)
    # A scalar that is not committed to the devices of the params compiles the step a second time.
    place = lambda leaf: jax.device_put(leaf, devices) if leaf.ndim == 0 else leaf  # noqa: E731
    return _by_the_rules(TrainState(jax.device_put(jnp.zeros((), jnp.int32), devices), params,
                                    jax.tree.map(place, opt_state), parts))


def begin(params: Any, options: TrainOptions, start: TrainState | None) -> TrainState:
    """The state a run begins with: `init_state`, or a copy of `start`.

    Raises ValueError where `start` is the state of another model, trains something else, or has
    more steps behind it than the run.
    """
    if start is None:
        return init_state(params, options)
    check(params, options.trainable, options.keep_zeros)
    ours = _shapes(start.params) | {f'moments of {name}': shape for name, shape in _shapes(
        moments(start.opt_state).mu).items()}
    theirs = _shapes(params) | {f'moments of {name}': shape for name, shape in trained_shapes(
        params, options).items()}
    if odd := sorted(name for name in ours.keys() | theirs.keys()
                     if ours.get(name) != theirs.get(name)):
        raise ValueError(f'start: {odd[0]} has shape {ours.get(odd[0])}, and {theirs.get(odd[0])} '
                         'with these params and options; give what the state was made for, or make '
                         'one with train.carry')
    if int(start.step) > options.steps:
        raise ValueError(f'start has {int(start.step)} steps behind it and the run only '
                         f'steps={options.steps}; give more')
    return _by_the_rules(jax.tree.map(
        lambda leaf: jax.device_put(leaf, leaf.sharding, may_alias=False), start))


def trained_leaves(state: TrainState, trainable: Chosen) -> Leaves:
    """All that trains, by name."""
    return select(state.params, trainable) | state.parts


def params_of(state: TrainState, options: TrainOptions) -> Any:
    """The weights that the model of a state computes with, its parts merged.

    Leaves that train whole are float32, all others in their own dtype, bit for bit as the forward
    pass of a step sees them.
    """
    if not state.parts:
        return state.params
    names = {*sliced(state.params, options.trainable), *adapted(state.params, options.trainable)}
    old = {path: leaf for path, leaf in leaves_with_paths(state.params) if path in names}
    new = _merged(old, state.parts, options.trainable, options.keep_zeros)
    return map_with_path(lambda path, leaf: new.get(path, leaf), state.params)


def recipe(options: TrainOptions) -> Recipe:
    """The options that are compiled into the step."""
    return Recipe(*(getattr(options, name) for name in Recipe._fields))


def restore_dtypes(params: Any, like: Any) -> Any:
    """`params` with every leaf in the dtype of `like`; bit-equal for leaves that did not train."""
    return jax.tree.map(lambda new, old: new.astype(old.dtype), params, like)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _merged(old: Leaves, parts: Leaves, trainable: Chosen, keep_zeros: str | None) -> Leaves:
    return effective(old, parts, trainable, keep_zeros)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in leaves_with_paths(tree)}


def trained_shapes(params: Any, options: TrainOptions) -> dict[str, tuple[int, ...]]:
    """The shape of all that trains, by name."""
    shapes, chosen = _shapes(params), options.trainable
    found = _shapes(select(params, chosen))
    found |= {path: (len(ids), *shapes[path][1:]) for path, ids in sliced(params, chosen).items()}
    for path in adapted(params, chosen):
        (*stack, rows, columns), rank = shapes[path], rule_of(chosen).rank
        found |= {f'{path}/a': (*stack, rows, rank), f'{path}/b': (*stack, rank, columns)}
    return found


def _slices(params: Any, options: TrainOptions) -> Leaves:
    """The selected experts of each leaf that is trained in part, float32."""
    leaves = dict(leaves_with_paths(params))
    return {path: jnp.take(leaves[path], jnp.asarray(ids, jnp.int32), axis=0).astype(jnp.float32)
            for path, ids in sliced(params, options.trainable).items()}


def _adapters(params: Any, options: TrainOptions) -> Leaves:
    """Both matrices of each adapter: a normal with deviation 1/sqrt(in), b zero (Hu et al. 2021).

    The draw follows the seed and the leaf's path.
    """
    leaves, rank, found = dict(leaves_with_paths(params)), rule_of(options.trainable).rank, {}
    for path in adapted(params, options.trainable):
        leaf = leaves[path]
        *stack, rows, columns = leaf.shape
        key = jax.random.fold_in(jax.random.key(options.seed), zlib.crc32(path.encode()))
        a = jax.random.normal(key, (*stack, rows, rank), jnp.float32) / np.float32(rows**0.5)
        found |= {f'{path}/a': jax.device_put(a, replicated(leaf)), f'{path}/b': jax.device_put(
            jnp.zeros((*stack, rank, columns), jnp.float32), replicated(leaf))}
    return found


def _warn_of_zeros(params: Any, leaves: Leaves, options: TrainOptions) -> None:
    """Log which expert matrices will lose the exact zeros that pruning has given them."""
    low = dict.fromkeys(adapted(params, options.trainable))
    matrices = {path: leaves.get(path, leaf) for path, leaf in leaves_with_paths(params)
                if 'moe/experts/' in path and leaf.ndim == 3 and (path in leaves or path in low)
                and not kept(path, options.keep_zeros)}
    if options.keep_zeros is not None or not matrices:
        return
    sparse = {path: share for path, share in jax.device_get(_zeros(matrices)).items()
              if share > ZEROS}
    if sparse:
        path, share = max(sparse.items(), key=lambda item: item[1])
        log.warning('%d expert matrices have exact zeros (%s: %.0f%%), which training will fill; '
                    "TrainOptions(keep_zeros='moe/experts/') keeps them", len(sparse), path,
                    100 * share)


@jax.jit
def _zeros(matrices: Leaves) -> dict[str, jax.Array]:
    """The share of exact zeros of each; by expert first, or float32 could not count them."""
    return {path: jnp.mean(jnp.mean(leaf == 0, axis=(1, 2), dtype=jnp.float32))
            for path, leaf in matrices.items()}


def _by_the_rules(state: TrainState) -> TrainState:
    """A state laid out over its mesh as a step leaves it, so that no second step is compiled."""
    mesh = sharding.mesh_of(state.params)
    return state if mesh is None else sharding.place(state, mesh)


def _own(leaf: Any, trains: bool) -> jax.Array:
    """A committed copy of a leaf where it lives (else the first device), float32 if it trains."""
    home = leaf.sharding if isinstance(leaf, jax.Array) else first_device()
    if trains and leaf.dtype != np.float32:
        leaf = leaf.astype(np.float32)
    return jax.device_put(leaf, home, may_alias=False)


