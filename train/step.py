"""One optimizer step, compiled once for every run that shares shapes, config and optimiser form.

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

from moe_jax.config import Config
from moe_jax.model import forward
from train import losses, optim
from train.options import TrainOptions
from train.state import TrainState, recipe

Batch = dict[str, Any]
Metrics = dict[str, Any]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


class Diverged(FloatingPointError):
    """The loss or its gradient is not finite; `norms` and `grad_norms` are by subtree of params."""

    def __init__(self, message: str, step: int, norms: dict[str, float],
                 grad_norms: dict[str, float]) -> None:
        super().__init__(message)
        self.step, self.norms, self.grad_norms = step, norms, grad_norms


def make_step(cfg: Config, options: TrainOptions, *, experts: bool = False) -> Step:
    """The jitted step `(state, batch) -> (state, metrics)`; it takes over (donates) the state.

    batch: 'tokens', 'segments' int32 and 'weights' float32, each [A, B, T]: A micro-batches whose
    gradients are averaged by weight, as if they were one batch of A*B rows (the balance and z
    losses are means over micro-batches). metrics: scalars 'loss', 'ce' (nats per weighted token),
    'balance', 'zloss', 'grad_norm' (before clipping), 'lr', 'load_max' and 'load_mean' (busiest
    expert over mean, over layers), 'dropped' (share of choices), 'tokens' (weight total), 'finite';
    and 'grad_norms' by subtree; with `experts` also 'experts', {'hits', 'mass'} by layer as
    `forward` gives them, summed over the batch. Where `finite` is false the update was not made.
    """
    clip = np.inf if options.clip is None else options.clip
    scalars = optim.Scalars(
        peak_lr=jnp.asarray(options.peak_lr, jnp.float32),
        warmup=jnp.asarray(options.warmup, jnp.int32),
        steps=jnp.asarray(options.steps, jnp.int32),
        weight_decay=jnp.asarray(options.weight_decay, jnp.float32),
        clip=jnp.asarray(clip, jnp.float32),
        seed=jnp.asarray(options.seed, jnp.int32),
    )
    return functools.partial(train_step, scalars=scalars, cfg=cfg, recipe=recipe(options),
                             experts=experts)


@functools.partial(
    jax.jit, static_argnames=('cfg', 'recipe', 'experts'), donate_argnames=('state',)
)
def train_step(
    state: TrainState, batch: Batch, *, scalars: optim.Scalars, cfg: Config, recipe: optim.Recipe,
    experts: bool = False,
) -> tuple[TrainState, Metrics]:
    """The step behind `make_step`; its jit cache is shared by every run of the process."""
    leaves = optim.select(state.params, recipe.trainable)
    grads, metrics = _gradients(cfg, state, leaves, batch, scalars.seed)
    norms = subtree_norms(grads)
    total = jnp.sqrt(sum(jnp.square(norm) for norm in norms.values()))
    rate = optim.learning_rate(
        recipe.schedule, state.step, scalars.peak_lr, scalars.warmup, scalars.steps
    )
    updated = optim.update(recipe, scalars, rate, grads, state.opt_state, leaves)
    finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(total)
    # A step that is not finite must leave a state worth keeping, and worth describing.
    leaves, opt_state = jax.tree.map(
        functools.partial(jnp.where, finite), updated, (leaves, state.opt_state)
    )
    if not experts:
        del metrics['experts']
    metrics |= {'grad_norm': total, 'grad_norms': norms, 'lr': rate, 'finite': finite}
    return TrainState(state.step + 1, optim.put(state.params, leaves), opt_state), metrics


def subtree_norms(leaves: optim.Leaves) -> dict[str, jax.Array]:
    """Euclidean norm of the leaves under each top-level key ('embed', 'layer_0', ...)."""
    groups: dict[str, list[jax.Array]] = {}
    for path, leaf in leaves.items():
        groups.setdefault(path.partition('/')[0], []).append(leaf)
    return {name: optax.tree.norm(group) for name, group in groups.items()}


def _gradients(
    cfg: Config, state: TrainState, leaves: optim.Leaves, batch: Batch, seed: jax.Array
) -> tuple[optim.Leaves, Metrics]:
    """Gradient of the loss over all A micro-batches, and its metrics."""
    micro = batch['tokens'].shape[0]
    weight = batch['weights'][:, :, 1:].sum()
    scale = 1.0 / jnp.where(weight > 0, weight, 1.0)
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def loss(leaves: optim.Leaves, rows: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        logits, out = forward(
            cfg, optim.put(state.params, leaves), rows['tokens'], rows['segments'],
            train=True, key=key,
        )
        nats, _ = losses.cross_entropy(logits, rows['tokens'], rows['weights'])
        value = nats * scale + losses.auxiliary(out) / micro
        return value, {'loss': value, 'ce': nats * scale, **out}

    gradient = jax.grad(loss, has_aux=True)
    if micro == 1:
        grads, parts = gradient(leaves, jax.tree.map(lambda x: x[0], batch), key)
        parts = jax.tree.map(lambda x: x[None], parts)
    else:
        def add(total: optim.Leaves, inputs: Any) -> tuple[optim.Leaves, Metrics]:
            index, rows = inputs
            grads, parts = gradient(leaves, rows, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, total, grads), parts

        zeros = jax.tree.map(jnp.zeros_like, leaves)
        grads, parts = jax.lax.scan(add, zeros, (jnp.arange(micro), batch))
    return grads, _summary(parts) | {'tokens': weight}


def _summary(parts: Metrics) -> Metrics:
    """Metrics of the whole batch from those of its micro-batches, stacked on axis 0."""
    load, dropped = parts['load'], parts['dropped']
    count = max(load.size, 1)  # 0 in a model without experts
    return {
        'loss': parts['loss'].sum(),
        'ce': parts['ce'].sum(),
        'balance': parts['balance'].mean(),
        'zloss': parts['zloss'].mean(),
        'load_max': load.max(initial=0.0),
        'load_mean': load.sum() / count,
        'dropped': dropped.sum() / count,
        'experts': {name: jax.tree.map(lambda x: x.sum(axis=0), parts[name])
                    for name in ('hits', 'mass')},
    }
