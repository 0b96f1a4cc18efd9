"""How fast what trains moves, and how: schedules, clipped AdamW.

What trains lies in a flat dict name -> array (`trainable`) while an update is computed.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from train.trainable.trainable import Chosen, Leaves, kept

NO_DECAY = re.compile(r'(^|/)(bias|\w+_bias|scale|positions)$')


def decays(leaves: Leaves) -> dict[str, bool]:
    """Which leaves weight decay acts on: matrices that multiply activations, and token embeddings.

    Not biases (also [E, F] ones), norm scales, position embeddings, or anything of rank below 2.
    """
    return {path: leaf.ndim > 1 and not NO_DECAY.search(path) for path, leaf in leaves.items()}


def linear(progress: jax.Array) -> jax.Array:
    """1 - progress."""
    return 1.0 - progress


def cosine(progress: jax.Array) -> jax.Array:
    """(1 + cos(pi progress)) / 2."""
    return 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


def constant(progress: jax.Array) -> jax.Array:
    """1 throughout: no decay after the warm-up."""
    return jnp.ones_like(progress)


# Share of the peak learning rate as a function of progress in [0, 1) after the warm-up.
SCHEDULES: dict[str, Callable[[jax.Array], jax.Array]] = {
    'linear': linear,
    'cosine': cosine,
    'constant': constant,
}


def learning_rate(
    schedule: str, step: jax.Array, peak: jax.Array, warmup: jax.Array, steps: jax.Array
) -> jax.Array:
    """Learning rate of the update that follows `step` finished ones; float32, all traced.

    peak * (step + 1) / warmup up to the peak at the last warm-up step, then peak *
    SCHEDULES[schedule](progress), progress reaching 1 only after the last step, so that neither
    the first nor the last update is empty.
    """
    done = step.astype(jnp.float32)
    rise = jnp.maximum(warmup.astype(jnp.float32), 1.0)
    fall = jnp.maximum(steps.astype(jnp.float32) - rise + 1.0, 1.0)
    progress = jnp.clip((done - rise + 1.0) / fall, 0.0, 1.0)
    return peak * jnp.minimum((done + 1.0) / rise, SCHEDULES[schedule](progress))


class Recipe(NamedTuple):
    """The part of TrainOptions that is compiled into the step."""

    trainable: Chosen
    schedule: str
    b1: float
    b2: float
    eps: float
    keep_zeros: str | None = None


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

    keep: where false, the moments stay as they were.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip),
        # As optax.adamw, state included.
        optax.chain(
            scale_by_adam(recipe, keep),
            optax.add_decayed_weights(weight_decay, decays),
            optax.scale_by_learning_rate(rate),
        ),
    )


def scale_by_adam(recipe: Recipe, keep: jax.Array | bool) -> optax.GradientTransformation:
    """optax.scale_by_adam, with the moments finished before anything is made of them.

    Else XLA computes them again beside the weights' update, from the moments before, which it has
    to copy first because the new ones take their place in memory.
    """
    adam = optax.scale_by_adam(recipe.b1, recipe.b2, recipe.eps)

    def update(grads, state, params=None):
        new = jax.lax.optimization_barrier(jax.tree.map(
            lambda new, old: jnp.where(keep, new, old), adam.update(grads, state)[1], state))
        mean = optax.tree.bias_correction(new.mu, recipe.b1, new.count)
        square = optax.tree.bias_correction(new.nu, recipe.b2, new.count)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + recipe.eps), mean, square), new

    return optax.GradientTransformation(adam.init, update)


def without_zeros(recipe: Recipe, values: Leaves, leaves: Leaves) -> Leaves:
    """`values` with 0 where a leaf is exactly 0 and is to keep its zeros.

    Of gradients it keeps the moments at 0 there, of an update the weights: the zeros are their own
    mask, so an entry that training itself brings to exactly 0 stays there as well.
    """
    return {name: jnp.where(leaves[name] != 0, value, 0.0) if kept(name, recipe.keep_zeros)
            else value for name, value in values.items()}


def moments(opt_state: Any) -> optax.ScaleByAdamState:
    """The part of an optimizer state that has count, mu and nu."""
    return next(filter(_is_adam, jax.tree.leaves(opt_state, is_leaf=_is_adam)))


def with_moments(opt_state: Any, adam: optax.ScaleByAdamState) -> Any:
    """The optimizer state with that part replaced."""
    return jax.tree.map(lambda state: adam if _is_adam(state) else state, opt_state,
                        is_leaf=_is_adam)


def _is_adam(state: Any) -> bool:
    return isinstance(state, optax.ScaleByAdamState)


def update(
    recipe: Recipe, scalars: Scalars, rate: jax.Array, grads: Leaves, opt_state: Any,
    leaves: Leaves, keep: jax.Array | bool = True,
) -> tuple[Leaves, Any]:
    """One clipped AdamW update of the leaves that train; returns (leaves, optimizer state).

    keep: where false, both stay as they were.
    """
    optimizer = adamw(recipe, rate, scalars.weight_decay, scalars.clip, keep)
    # optax raises a float to an int32 count, which strict promotion refuses.
    with jax.numpy_dtype_promotion('standard'):
        changes, opt_state = optimizer.update(grads, opt_state, leaves)
        updated = without_zeros(recipe, optax.apply_updates(leaves, changes), leaves)
    return {name: jnp.where(keep, new, leaves[name]) for name, new in updated.items()}, opt_state
