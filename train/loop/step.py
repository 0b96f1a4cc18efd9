"""One optimizer step, compiled once for every run that shares shapes, config and optimizer form.

Steps, learning rate, warm-up, weight decay, clipping and seed are arguments of the compiled
function, so a study that varies them compiles once.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe_jax.base import sharding
from moe_jax.base.tree import Params
from moe_jax.config import Config
from train.loop.options import TrainOptions
from train.loop.state import TrainState, recipe
from train.objectives.objective import LANGUAGE_MODEL, Batch, Loss, Objective, Share, share_of
from train.optim import adamw
from train.optim.schedules import learning_rate
from train.trainable import resolved
from train.trainable.kinds import Leaves
from train.trainable.resolved import TrainedLeaves, put

Metrics = dict[str, Any]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class Diverged(FloatingPointError):
    """The loss or its gradient is not finite; `norms` and `grad_norms` are by subtree of params."""

    def __init__(self, message: str, step: int, norms: dict[str, float],
                 grad_norms: dict[str, float]) -> None:
        super().__init__(message)
        self.step, self.norms, self.grad_norms = step, norms, grad_norms


def make_step(
    cfg: Config, options: TrainOptions, *, experts: bool = False,
    objective: Objective = LANGUAGE_MODEL,
) -> Step:
    """The jitted step `(state, batch) -> (state, metrics)`; it takes over (donates) the state.

    batch: 'tokens', 'segments' int32 and 'weights' float32, each [A, B, T]: A micro-batches whose
    gradients are averaged by weight, as if they were one batch of A*B rows (the balance and z
    losses are means over micro-batches), and what else the objective reads, also [A, B, T, ...].
    metrics: scalars 'loss', the objective's terms ('ce', nats per weighted token), 'balance',
    'zloss', 'grad_norm' (before clipping), 'lr', 'load_max' and 'load_mean' (busiest expert over
    mean, over layers), 'dropped' (share of choices), 'tokens' (weight total), 'finite'; and
    'grad_norms' by subtree; with `experts` also 'experts', {'hits', 'mass'} by layer as `forward`
    gives them, summed over the batch. Where `finite` is false the update was not made.
    """
    step, trained = _bound(cfg, options, experts, objective), None

    def run(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        nonlocal trained
        if trained is None:  # there were no params before
            trained = resolved.resolve(state.params, options.trainable, options.keep_zeros)
        return step(state, batch, trained=trained)

    return run


def step_of(
    cfg: Config, options: TrainOptions, trained: TrainedLeaves, *, experts: bool = False,
    objective: Objective = LANGUAGE_MODEL,
) -> Step:
    """`make_step` where it is already resolved what trains."""
    return functools.partial(_bound(cfg, options, experts, objective), trained=trained)


def _bound(cfg: Config, options: TrainOptions, experts: bool, objective: Objective
           ) -> Callable[..., tuple[TrainState, Metrics]]:
    """`train_step` with the arguments that stay the same in a run, but for what trains."""
    clip = np.inf if options.clip is None else options.clip
    scalars = adamw.Scalars(
        peak_lr=jnp.asarray(options.peak_lr, jnp.float32),
        warmup=jnp.asarray(options.warmup, jnp.int32),
        steps=jnp.asarray(options.steps, jnp.int32),
        weight_decay=jnp.asarray(options.weight_decay, jnp.float32),
        clip=jnp.asarray(clip, jnp.float32),
        seed=jnp.asarray(options.seed, jnp.int32),
    )
    return functools.partial(train_step, scalars=scalars, cfg=cfg, recipe=recipe(options),
                             experts=experts, loss=objective.loss, extra=objective.extra)


@functools.partial(jax.jit, donate_argnames=('state',),
                   static_argnames=('cfg', 'recipe', 'trained', 'experts', 'loss'))
def train_step(
    state: TrainState, batch: Batch, *, scalars: adamw.Scalars, cfg: Config, recipe: adamw.Recipe,
    trained: TrainedLeaves, loss: Loss, extra: Any, experts: bool = False,
) -> tuple[TrainState, Metrics]:
    """The step behind `make_step`; its jit cache is shared by every run of the process."""
    leaves = trained.select(state.params) | state.parts
    one = functools.partial(_value, loss, cfg, trained, state.params, extra)
    grads, metrics = _gradients(one, leaves, batch, jax.random.fold_in(
        jax.random.key(scalars.seed), state.step))
    grads = adamw.without_zeros(trained, grads, leaves)
    norms = subtree_norms(grads)
    total = jnp.sqrt(sum(jnp.square(norm) for norm in norms.values()))
    rate = learning_rate(
        recipe.schedule, state.step, scalars.peak_lr, scalars.warmup, scalars.steps
    )
    # A step that is not finite must leave a state worth keeping, and worth describing.
    finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(total)
    leaves, opt_state = adamw.update(recipe, trained, scalars, rate, grads, state.opt_state, leaves,
                                     finite)
    if not experts:
        del metrics['experts']
    metrics |= {'grad_norm': total, 'grad_norms': norms, 'lr': rate, 'finite': finite}
    parts = {name: leaves.pop(name) for name in state.parts}
    state = TrainState(state.step + 1, put(state.params, leaves), opt_state, parts)
    # As it came in, or else the next step would be compiled for another layout.
    return sharding.lay_out(state), metrics


def subtree_norms(leaves: Leaves) -> dict[str, jax.Array]:
    """Euclidean norm of the leaves under each top-level key ('embed', 'layer_0', ...)."""
    groups: dict[str, list[jax.Array]] = {}
    for path, leaf in leaves.items():
        groups.setdefault(path.partition('/')[0], []).append(leaf)
    return {name: optax.tree.norm(group) for name, group in groups.items()}


def _value(
    loss: Loss, cfg: Config, trained: TrainedLeaves, params: Params, extra: Any, leaves: Leaves,
    rows: Batch, key: jax.Array, share: Share,
) -> tuple[jax.Array, Metrics]:
    """One micro-batch's share of the loss and of the metrics."""
    value, terms, out = loss(cfg, trained.effective(params, leaves), rows, extra, key, share)
    routing = {name: out[name] for name in ('balance', 'zloss', 'load', 'dropped', 'hits', 'mass')}
    return value, routing | {'terms': {'loss': value} | terms}


def _gradients(
    one: Callable[..., tuple[jax.Array, Metrics]], leaves: Leaves, batch: Batch,
    key: jax.Array,
) -> tuple[Leaves, Metrics]:
    """Gradient of the loss over all A micro-batches, and its metrics."""
    micro = batch['tokens'].shape[0]
    share = share_of(batch)
    gradient = jax.grad(one, has_aux=True)
    if micro == 1:
        grads, parts = gradient(leaves, jax.tree.map(lambda x: x[0], batch), key, share)
        parts = jax.tree.map(lambda x: x[None], parts)
    else:
        def add(total: Leaves, inputs: Any) -> tuple[Leaves, Metrics]:
            index, rows = inputs
            grads, parts = gradient(leaves, rows, jax.random.fold_in(key, index), share)
            return jax.tree.map(jnp.add, total, grads), parts

        zeros = jax.tree.map(jnp.zeros_like, leaves)
        grads, parts = jax.lax.scan(add, zeros, (jnp.arange(micro), batch))
    return grads, _summary(parts) | {
        'tokens': batch['weights'][:, :, 1:].sum()}


def _summary(parts: Metrics) -> Metrics:
    """Metrics of the whole batch from those of its micro-batches, stacked on axis 0."""
    load, dropped = parts['load'], parts['dropped']
    count = max(load.size, 1)  # 0 in a model without experts
    return {name: values.sum() for name, values in parts['terms'].items()} | {
        'balance': parts['balance'].mean(),
        'zloss': parts['zloss'].mean(),
        'load_max': load.max(initial=0.0),
        'load_mean': load.sum() / count,
        'dropped': dropped.sum() / count,
        'experts': {name: jax.tree.map(lambda x: x.sum(axis=0), parts[name])
                    for name in ('hits', 'mass')},
    }
