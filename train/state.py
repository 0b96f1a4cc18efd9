"""The state of a run, as one pytree: steps done, parameters, optimizer state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.tree import map_with_path
from train.optim import Recipe, adamw, select
from train.options import TrainOptions


class TrainState(NamedTuple):
    """step int32 scalar (updates done), params (trained leaves float32), opt_state (optax)."""

    step: jax.Array
    params: Any
    opt_state: Any


def init_state(params: Any, options: TrainOptions) -> TrainState:
    """The state before the first step: a copy of `params`, and zero moments for what trains.

    Leaves that train are held in float32, so that small updates are not lost in bfloat16; frozen
    leaves keep their dtype. The copy lets the step donate its state and leave `params` alone.
    """
    trained = select(params, options.trainable)
    params = map_with_path(lambda path, leaf: _own(leaf, path in trained), params)
    zero = jnp.zeros((), jnp.float32)
    optimizer = adamw(recipe(options), zero, zero, zero)
    opt_state = optimizer.init(select(params, options.trainable))
    # A scalar that is not committed to the devices of the params compiles the step a second time.
    devices = replicated(next(iter(trained.values())))
    place = lambda leaf: jax.device_put(leaf, devices) if leaf.ndim == 0 else leaf  # noqa: E731
    return TrainState(jax.device_put(jnp.zeros((), jnp.int32), devices), params,
                      jax.tree.map(place, opt_state))


def recipe(options: TrainOptions) -> Recipe:
    """The options that are compiled into the step."""
    return Recipe(*(getattr(options, name) for name in Recipe._fields))


def restore_dtypes(params: Any, like: Any) -> Any:
    """`params` with every leaf in the dtype of `like`; bit-equal for leaves that did not train."""
    return jax.tree.map(lambda new, old: new.astype(old.dtype), params, like)


def _own(leaf: Any, trains: bool) -> jax.Array:
    """A committed copy of a leaf where it lives (else the first device), float32 if it trains."""
    sharding = leaf.sharding if isinstance(leaf, jax.Array) else _first_device()
    if trains and leaf.dtype != np.float32:
        leaf = leaf.astype(np.float32)
    return jax.device_put(leaf, sharding, may_alias=False)


def _first_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def replicated(leaf: Any) -> jax.sharding.Sharding:
    """Where small arrays go that belong to a leaf: every device of its mesh, or its one device."""
    sharding = getattr(leaf, 'sharding', None)
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding or _first_device()
