"""Optimizer state through surgery: the moments go the way of the weights, or start again.

    state = train.last_state('run', params, options)
    small, small_cfg = prune.apply(params, cfg, plan)
    move = lambda order, leaves: prune.apply_moments(leaves, cfg, plan, order)
    fit(small_cfg, small, batches, options, start=train.carry(state, small, options, move))
"""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp

from moe_jax.base.tree import Params
from train.loop import store
from train.loop.options import TrainOptions
from train.loop.state import TrainState, init_state
from train.optim.adamw import moments, with_moments
from train.trainable.kinds import Leaves

Move = Callable[[int, Leaves], Leaves]


def carry(
    state: TrainState, params: Params, options: TrainOptions, move: Move | None = None
) -> TrainState:
    """The state with which training goes on after surgery has made new `params` of its own.

    move(order, leaves) -> leaves: from AdamW's first (order 1) or second (2) moments of what
    trained, path -> float32 array, to those of the new params, such as `prune.apply_moments`; a
    leaf that it does not give starts at zero, and the optimizer's count goes on. None: all moments
    start at zero and their count at 0, so that bias correction does, too. Steps done stay as they
    are, and with them the learning rate. The old state is left alone. Raises ValueError for moments
    of another shape than the weights, and with `move` where slices of leaves or adapters train: of
    these only a whole leaf, of merged weights, survives surgery.
    """
    fresh = init_state(params, options)
    step = jax.device_put(jnp.array(state.step), fresh.step.sharding)
    fresh = fresh._replace(step=step)
    if move is None:
        return fresh
    if state.parts or fresh.parts:
        raise ValueError(f'carry: {sorted(state.parts or fresh.parts)[0]} trains in part or by an '
                         'adapter, whose moments do not outlive surgery; give move=None')
    old, zero = moments(state.opt_state), moments(fresh.opt_state)
    # optax types moments as any tree of parameters; ours are `Leaves`.
    mu, nu = (_fitted(move(order, dict(cast(Leaves, leaves))), cast(Leaves, zeros), order)
              for order, leaves, zeros in ((1, old.mu, zero.mu), (2, old.nu, zero.nu)))
    count = jax.device_put(jnp.array(old.count), cast(jax.Array, zero.count).sharding)
    adam = old._replace(count=count, mu=mu, nu=nu)
    return fresh._replace(opt_state=with_moments(fresh.opt_state, adam))


def last_state(out: str | Path, params: Params, options: TrainOptions) -> TrainState:
    """The state of the newest checkpoint in the folder `out` of a run.

    params, options: what the run was started with. Raises FileNotFoundError where there is none.
    """
    return store.newest(out, init_state(params, options))


def _fitted(moved: Leaves, zeros: Leaves, order: int) -> Leaves:
    """The moments of every leaf that trains, where the zeros lie that they replace."""
    for name in sorted(zeros.keys() & moved.keys()):
        if moved[name].shape != zeros[name].shape:
            raise ValueError(f'carry: move({order}, ...) gives {name} the shape '
                             f'{moved[name].shape}; the new weights have {zeros[name].shape}')
    return {name: jax.device_put(jnp.array(moved[name], jnp.float32), zero.sharding)
            if name in moved else zero for name, zero in zeros.items()}
