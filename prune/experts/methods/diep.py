"""DiEP: learn a mask on every expert's gate by gradient descent on the layer's reconstruction.

Source: Bai et al., "DiEP: Adaptive Mixture-of-Experts Compression through Differentiable Expert
Pruning", arXiv 2509.16105: a score a_e per expert and one b per layer, relaxed, minimize the
reconstruction error plus a penalty (0.01); three steps on a follow each step on b; the experts of
all layers are then compared, so layers keep unequally many (SPREAD).

Here a mask m_e = sigmoid(a_e + b) multiplies the gate of expert e, and

    mean_t |y_t - y'_t|^2 / mean_t |y_t|^2 + lam * mean_e m_e

is minimized by Adam on inner products of expert outputs of a reservoir. A token has K places and
fills them in its own order of the experts: the r-th takes w_r = min(m_r, K - m_1 - ... - m_(r-1)),
at least 0, of them. Its gate is that of its score times w_r, renormalized over the w_r where the
convention renormalizes; softmax scores are shares of sum_e m_e exp(z_e). So masks of 0 and 1 give
exactly the router with the rows sliced, and a mask between them lets the next experts in. The score
is a_e + b.

Deviations: sigmoids for the softmax over a layer's experts, by which every expert's mask would
depend on how many there are; places and the relative error are this library's, as are steps, rate
and the start of all masks at 0.9. With router groups, and where a correction is added to softmax
scores, tokens keep the order that all experts give. Skipping at inference is not part of a plan.
"""

from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.routing.designs.top_k import choose
from prune.inputs.method import Cost, Method
from prune.inputs.statistics import Layers
from prune.subsets import error
from prune.subsets.error import Sample
from prune.subsets.gates import Rule, rule_of

START = 2.2  # b, so that masks begin at 0.9
BATCH = 1024  # tokens of each step
EVERY = 4  # the step of so many that moves b
Free = dict[str, jax.Array]  # a of each expert, b of the layer


class Masked(NamedTuple):
    """A reservoir for masks: scores [S, R], order [S, R] of each token's experts, and its inverse.
    """

    sample: Sample
    scores: jax.Array
    order: jax.Array
    rank: jax.Array


def scores(
    stats: Layers,
    params: Params,
    cfg: Config,
    *,
    steps: int = 300,
    lr: float = 0.05,
    lam: float = 0.01,
    seed: int = 0,
) -> dict[int, np.ndarray]:
    """Learned scores a_e + b, [E] per MoE layer; comparable between layers.

    steps: of Adam, each on up to 1024 tokens; every fourth moves b.
    lr: Adam's learning rate.
    lam: weight of the mean mask beside the relative error.
    seed: of the tokens that each step sees; a reservoir no larger than a step is seen whole.
    """
    if not (lr > 0 and lam >= 0):
        raise ValueError(f'diep: lr={lr}, lam={lam}: lr must be above 0, lam at least 0')
    learned = {}
    for i in cfg.moe_layers:
        sample = error.sample_of(stats[i], params[f'layer_{i}']['moe'], cfg)
        rule, rng = rule_of(cfg, cfg.experts[i]), np.random.default_rng(seed)
        tokens = len(sample.square)
        picked = np.stack([rng.permutation(tokens)[:BATCH] for _ in range(steps)]) if (
            tokens > BATCH) else np.tile(np.arange(tokens), (steps, 1))
        logits = _learned(rule, masked(sample, rule), picked, lr, lam, max(sample.scale, 1e-30))
        learned[i] = np.asarray(logits, np.float64)
    return learned


def masked(sample: Sample, rule: Rule) -> Masked:
    """The reservoir with the scores that gates are made of and the order of every token's experts.
    """
    router, rows = sample.router, sample.cross.shape[1]
    order = choose(router.logits, router.correction, topk=rows, gate=rule.name,
                           groups=rule.groups, groups_used=rule.groups_used).ids
    return Masked(sample, router.scores, order, jnp.argsort(order, axis=1))


def masked_gates(rule: Rule, seen: Masked, picked: jax.Array, mask: jax.Array) -> jax.Array:
    """Gates [B, R] of the tokens picked [B] under masks [R] from 0 to 1."""
    in_order = mask[seen.order[picked]]
    before = jnp.cumsum(in_order, axis=1) - in_order
    places = jnp.clip(rule.topk - before, 0.0, in_order)
    filled = jnp.take_along_axis(places, seen.rank[picked], axis=1) * seen.scores[picked]
    total = jnp.ones((len(picked), 1))
    if rule.gate.renormalized:
        total = filled.sum(axis=1, keepdims=True) + 1e-20
    elif rule.gate.rescales:
        total = (seen.scores[picked] @ mask)[:, None] + 1e-20
    return filled / total * rule.scale


def masked_error(rule: Rule, seen: Masked, picked: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean |y_t - y'_t|^2 of the tokens picked [B] under masks [R]."""
    g, sample = masked_gates(rule, seen, picked, mask), seen.sample
    square = jnp.einsum('bi,bij,bj->b', g, sample.gram[picked], g)
    return (sample.square[picked] - 2 * (g * sample.cross[picked]).sum(axis=1) + square).mean()


@partial(jax.jit, static_argnums=0)
def _learned(
    rule: Rule, seen: Masked, picked: jax.Array, lr: float, lam: float, scale: float
) -> jax.Array:
    """a + b [R] after a step on each row of picked [steps, B]."""
    adam = optax.adam(lr)

    def objective(free: Free, tokens: jax.Array) -> jax.Array:
        mask = jax.nn.sigmoid(free['expert'] + free['layer'])
        return masked_error(rule, seen, tokens, mask) / scale + lam * mask.mean()

    def step(state, now):
        free, moments = state
        number, tokens = now
        gradient = jax.grad(objective)(free, tokens)
        # optax raises a float to an int32 count, which strict promotion refuses.
        with jax.numpy_dtype_promotion('standard'):
            changes, moments = adam.update(gradient, moments)
        moved = cast(Free, changes)
        layer = jnp.where(number % EVERY == EVERY - 1, 1.0, 0.0)
        moved = {'expert': moved['expert'] * (1 - layer), 'layer': moved['layer'] * layer}
        return (cast(Free, optax.apply_updates(free, moved)), moments), None

    free: Free = {'expert': jnp.zeros(seen.scores.shape[1]), 'layer': jnp.asarray(START)}
    numbered = jnp.arange(len(picked)), picked
    free, _ = jax.lax.scan(step, (free, adam.init(cast(optax.Params, free))), numbered)[0]
    return free['expert'] + free['layer']


METHOD = Method(
    name='diep',
    title='DiEP',
    doc=__doc__,
    paper='DiEP, 2025',
    kind='drop',
    cost=Cost.RESERVOIR,
    needs=error.NEEDS,
    scores=scores,
    spread='global',
    place=180,
)
