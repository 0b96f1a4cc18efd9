"""Clipped AdamW of what trains, a flat dict name -> array.

On accelerators it is `optax.adamw`. On CPU its formula is restated, with a barrier after the
moments: without one XLA:CPU computes them again beside the update of the weights, from the moments
before, which it has to copy first because the new ones take their place in memory.
"""

import re
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from moe_jax.kernels import target
from train.trainable.kinds import Leaves
from train.trainable.resolved import TrainedLeaves

NO_DECAY = re.compile(r'(^|/)(bias|\w+_bias|scale|positions)$')


def decays(leaves: Leaves) -> dict[str, bool]:
    """Which leaves weight decay acts on: matrices that multiply activations, and token embeddings.

    Not biases (also [E, F] ones), norm scales, position embeddings, or anything of rank below 2.
    """
    return {path: leaf.ndim > 1 and not NO_DECAY.search(path) for path, leaf in leaves.items()}


class Recipe(NamedTuple):
    """The part of TrainOptions that is compiled into the step, but for what trains."""

    schedule: str
    b1: float
    b2: float
    eps: float


class Scalars(NamedTuple):
    """The part of TrainOptions that a compiled step takes as arguments; each a scalar array."""

    peak_lr: jax.Array
    warmup: jax.Array
    steps: jax.Array
    weight_decay: jax.Array
    clip: jax.Array
    seed: jax.Array


def adamw(
    recipe: Recipe, rate: jax.Array, weight_decay: jax.Array, clip: jax.Array,
    keep: jax.Array | bool = True,
) -> optax.GradientTransformation:
    """Clip the global norm to `clip`, then AdamW with decoupled decay of the leaves of `decays`.

    keep: where false, the moments stay as they were. The state is that of `optax.adamw` on every
    backend.
    """
    optimizer = _on_cpu if target.platform() == 'cpu' else _elsewhere
    return optax.chain(optax.clip_by_global_norm(clip), optimizer(recipe, rate, weight_decay, keep))


def _elsewhere(recipe: Recipe, rate: jax.Array, weight_decay: jax.Array, keep: jax.Array | bool
               ) -> optax.GradientTransformation:
    """`optax.adamw` itself."""
    adam = optax.adamw(rate, recipe.b1, recipe.b2, recipe.eps, weight_decay=weight_decay,
                       mask=decays)

    def update(grads: Leaves, state: optax.OptState, params: Leaves | None = None
               ) -> tuple[Leaves, optax.OptState]:
        changes, new = adam.update(grads, state, params)
        return cast(Leaves, changes), _kept(keep, new, state)

    return optax.GradientTransformation(adam.init, cast(optax.TransformUpdateFn, update))


def _on_cpu(recipe: Recipe, rate: jax.Array, weight_decay: jax.Array, keep: jax.Array | bool
            ) -> optax.GradientTransformation:
    """The links of `optax.adamw`, the first one's formula restated."""
    return optax.chain(
        _scale_by_adam(recipe, keep),
        optax.add_decayed_weights(weight_decay, decays),
        optax.scale_by_learning_rate(rate),
    )


def _scale_by_adam(recipe: Recipe, keep: jax.Array | bool) -> optax.GradientTransformation:
    """optax.scale_by_adam, with the moments finished before anything is made of them."""
    adam = optax.scale_by_adam(recipe.b1, recipe.b2, recipe.eps)

    def update(grads: Leaves, state: optax.ScaleByAdamState, params: Leaves | None = None
               ) -> tuple[Leaves, optax.ScaleByAdamState]:
        del params
        new = jax.lax.optimization_barrier(_kept(keep, adam.update(grads, state)[1], state))
        mean = optax.tree.bias_correction(new.mu, recipe.b1, new.count)
        square = optax.tree.bias_correction(new.nu, recipe.b2, new.count)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + recipe.eps), mean, square), new

    return optax.GradientTransformation(adam.init, cast(optax.TransformUpdateFn, update))


def _kept(keep: jax.Array | bool, new: optax.OptState, old: optax.OptState) -> optax.OptState:
    """The new state, or where `keep` is false the old one."""
    return jax.tree.map(lambda new, old: jnp.where(keep, new, old), new, old)


def without_zeros(trained: TrainedLeaves, values: Leaves, leaves: Leaves) -> Leaves:
    """`values` with 0 where a leaf is exactly 0 and is to keep its zeros.

    Of gradients it keeps the moments at 0 there, of an update the weights: the zeros are their own
    mask, so an entry that training itself brings to exactly 0 stays there as well.
    """
    return {name: jnp.where(leaves[name] != 0, value, 0.0) if trained.zeros_stay(name) else value
            for name, value in values.items()}


def moments(opt_state: optax.OptState) -> optax.ScaleByAdamState:
    """The part of an optimizer state that has count, mu and nu."""
    return next(filter(_is_adam, jax.tree.leaves(opt_state, is_leaf=_is_adam)))


def with_moments(opt_state: optax.OptState, adam: optax.ScaleByAdamState) -> optax.OptState:
    """The optimizer state with that part replaced."""
    return jax.tree.map(lambda state: adam if _is_adam(state) else state, opt_state,
                        is_leaf=_is_adam)


def _is_adam(state: object) -> bool:
    return isinstance(state, optax.ScaleByAdamState)


def update(
    recipe: Recipe, trained: TrainedLeaves, scalars: Scalars, rate: jax.Array, grads: Leaves,
    opt_state: optax.OptState, leaves: Leaves, keep: jax.Array | bool = True,
) -> tuple[Leaves, optax.OptState]:
    """One clipped AdamW update of the leaves that train; returns (leaves, optimizer state).

    keep: where false, both stay as they were.
    """
    optimizer = adamw(recipe, rate, scalars.weight_decay, scalars.clip, keep)
    # optax raises a float to an int32 count, which strict promotion refuses.
    with jax.numpy_dtype_promotion('standard'):
        changes, opt_state = optimizer.update(grads, opt_state, leaves)
        updated = cast(Leaves, optax.apply_updates(leaves, changes))
        updated = without_zeros(trained, updated, leaves)
    return {name: jnp.where(keep, new, leaves[name]) for name, new in updated.items()}, opt_state
