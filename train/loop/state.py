"""The state of a run, as one pytree: steps done, parameters, optimizer state, parts that train.

Letters: E experts, r rank of an adapter.
"""

import functools
import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe_jax.base import sharding
from moe_jax.base.sharding import first_device, replicated
from moe_jax.base.tree import Params, leaves_with_paths, map_with_path
from train.loop.options import TrainOptions
from train.optim.adamw import Recipe, adamw, moments
from train.trainable import resolved
from train.trainable.kinds import Leaves, Shape
from train.trainable.resolved import TrainedLeaves

ZEROS = 0.05  # more exact zeros than this in an expert's matrices were made by pruning

log = logging.getLogger(__name__)


class TrainState(NamedTuple):
    """step int32 scalar (updates done), params (leaves trained whole float32), opt_state (optax).

    parts: what trains and is no whole leaf, by name, float32 (`trainable.kinds`).
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    parts: Leaves


def init_state(params: Params, options: TrainOptions) -> TrainState:
    """The state before the first step: a copy of `params`, and zero moments for what trains.

    What trains is held in float32, so that small updates are not lost in bfloat16; frozen leaves,
    and those of which some experts train, keep their dtype. The copy lets the step donate its state
    and leave `params` alone. Raises ValueError where the options do not fit the params.
    """
    trained = resolved.resolve(params, options.trainable, options.keep_zeros)
    return first_state(params, options, trained)


def first_state(params: Params, options: TrainOptions, trained: TrainedLeaves) -> TrainState:
    """`init_state` where it is already resolved what trains."""
    whole = trained.select(params)
    devices = replicated(next(iter(whole.values()), jax.tree.leaves(params)[0]))
    params = map_with_path(lambda path, leaf: _own(leaf, path in whole), params)
    leaves, parts = trained.start(params, options.seed)
    _warn_of_zeros(params, leaves, trained)
    zero = jnp.zeros((), jnp.float32)
    opt_state = adamw(recipe(options), zero, zero, zero).init(leaves)
    # A scalar that is not committed to the devices of the params compiles the step a second time.
    place = lambda leaf: jax.device_put(leaf, devices) if leaf.ndim == 0 else leaf  # noqa: E731
    return _by_the_rules(TrainState(jax.device_put(jnp.zeros((), jnp.int32), devices), params,
                                    jax.tree.map(place, opt_state), parts))


def begin(params: Params, options: TrainOptions, trained: TrainedLeaves, start: TrainState | None
          ) -> TrainState:
    """The state a run begins with: `first_state`, or a copy of `start`.

    Raises ValueError where `start` is the state of another model, trains something else, or has
    more steps behind it than the run.
    """
    if start is None:
        return first_state(params, options, trained)
    ours = _shapes(start.params) | {f'moments of {name}': shape for name, shape in _shapes(
        moments(start.opt_state).mu).items()}
    theirs = _shapes(params) | {f'moments of {name}': shape
                                for name, shape in trained.shapes.items()}
    if odd := sorted(name for name in ours.keys() | theirs.keys()
                     if ours.get(name) != theirs.get(name)):
        raise ValueError(f'start: {odd[0]} has shape {ours.get(odd[0])}, and {theirs.get(odd[0])} '
                         'with these params and options; give what the state was made for, or make '
                         'one with train.carry')
    if int(start.step) > options.steps:
        raise ValueError(f'start has {int(start.step)} steps behind it and the run only '
                         f'steps={options.steps}; give more')
    home = replicated(jax.tree.leaves(params)[0])
    return _by_the_rules(jax.tree.map(functools.partial(_copied, home=home), start))


def _copied(leaf: Any, home: jax.sharding.Sharding) -> jax.Array:
    """A copy of a leaf where it lies; of one on the host, as unpickling leaves it, at `home`."""
    where = leaf.sharding if isinstance(leaf, jax.Array) else home
    return jax.device_put(leaf, where, may_alias=False)


def params_of(state: TrainState, options: TrainOptions) -> Params:
    """The weights that the model of a state computes with, its parts merged.

    Leaves that train whole are float32, all others in their own dtype, bit for bit as the forward
    pass of a step sees them.
    """
    if not state.parts:
        return state.params
    return merged(state, resolved.resolve(state.params, options.trainable, options.keep_zeros))


def merged(state: TrainState, trained: TrainedLeaves) -> Params:
    """`params_of` where it is already resolved what trains."""
    if not state.parts:
        return state.params
    old = {path: leaf for path, leaf in leaves_with_paths(state.params)
           if path in trained.by_path and not trained.is_whole(path)}
    new = _merged(old, state.parts, trained)
    return map_with_path(lambda path, leaf: new.get(path, leaf), state.params)


def recipe(options: TrainOptions) -> Recipe:
    """The options that are compiled into the step."""
    return Recipe(*(getattr(options, name) for name in Recipe._fields))


def restore_dtypes(params: Params, like: Params) -> Params:
    """`params` with every leaf in the dtype of `like`; bit-equal for leaves that did not train."""
    return jax.tree.map(lambda new, old: new.astype(old.dtype), params, like)


@functools.partial(jax.jit, static_argnums=2)
def _merged(old: Leaves, parts: Leaves, trained: TrainedLeaves) -> Params:
    return trained.effective(old, parts)


def _shapes(tree: Any) -> dict[str, Shape]:
    return {path: tuple(leaf.shape) for path, leaf in leaves_with_paths(tree)}


def _warn_of_zeros(params: Params, leaves: Leaves, trained: TrainedLeaves) -> None:
    """Log which expert matrices will lose the exact zeros that pruning has given them."""
    if trained.keep_zeros is not None:
        return
    # Of a slice its own experts; an adapter's matrix itself.
    matrices = {path: leaves.get(path, leaf) for path, leaf in leaves_with_paths(params)
                if 'moe/experts/' in path and leaf.ndim == 3 and path in trained.by_path}
    shares = jax.device_get(_zeros(matrices)) if matrices else {}
    if sparse := {path: share for path, share in shares.items() if share > ZEROS}:
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
