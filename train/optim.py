"""Which leaves train, how fast, and how: path selection, schedules, clipped AdamW.

Trainable leaves live in a flat dict path -> array while an update is computed, so that optimizer
state exists for them alone and frozen leaves cost neither gradient nor memory.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from moe_jax.tree import leaves_with_paths, map_with_path

Leaves = dict[str, jax.Array]

NO_DECAY = re.compile(r'(^|/)(bias|\w+_bias|scale|positions)$')


def select(params: Any, trainable: str | None) -> Leaves:
    """The leaves that train, by path: those in whose path the expression `trainable` is found."""
    leaves = dict(leaves_with_paths(params))
    if trainable is None:
        return leaves
    chosen = {path: leaf for path, leaf in leaves.items() if re.search(trainable, path)}
    if not chosen:
        some = ', '.join(list(leaves)[:8])
        raise ValueError(
            f'trainable={trainable!r} matches none of the {len(leaves)} parameter paths, '
            f'such as {some}'
        )
    return chosen


def put(params: Any, leaves: Leaves) -> Any:
    """`params` with the leaves at the given paths replaced."""
    return map_with_path(lambda path, leaf: leaves.get(path, leaf), params)


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

    trainable: str | None
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
    recipe: Recipe, rate: jax.Array, weight_decay: jax.Array, clip: jax.Array
) -> optax.GradientTransformation:
    """Clip the global norm to `clip`, then AdamW with decoupled decay of the leaves of `decays`."""
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adamw(rate, recipe.b1, recipe.b2, recipe.eps, weight_decay=weight_decay, mask=decays),
    )


def update(
    recipe: Recipe, scalars: Scalars, rate: jax.Array, grads: Leaves, opt_state: Any, leaves: Leaves
) -> tuple[Leaves, Any]:
    """One clipped AdamW update of the leaves that train; returns (leaves, optimizer state)."""
    optimizer = adamw(recipe, rate, scalars.weight_decay, scalars.clip)
    # optax raises a float to an int32 count, which strict promotion refuses.
    with jax.numpy_dtype_promotion('standard'):
        changes, opt_state = optimizer.update(grads, opt_state, leaves)
        return optax.apply_updates(leaves, changes), opt_state
