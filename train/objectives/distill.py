"""The loss of distillation as a step computes it, from the teacher's signals and experts.

Letters: B rows, T tokens, N = B T, D width, G experts of the student, M members (experts of the
teacher that one of the student stands for), K choices.
"""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp

from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.experts import parallel
from moe_jax.layers import ffn
from moe_jax.model.decoder import forward
from moe_jax.routing import routing
from moe_jax.routing.alias import to_experts
from train.objectives import losses
from train.objectives.objective import Batch, Share, Terms
from train.objectives.teacher import LOGITS, STREAM, TOP, Question


@dataclasses.dataclass(frozen=True)
class Gap:
    """Squared error of one expert against the mixture it stands for; both as in `ffn`.

    Called with ({'own', 'of' [M, ...], 'share' [M]}, x [rows, D] float32) -> [rows, 1], the mean
    over D, float32. Experts compute in `dtype`.
    """

    own: ffn.Ffn
    of: ffn.Ffn
    dtype: str

    def __call__(self, weights: Params, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.dtype(self.dtype))

        def add(total: jax.Array, member: tuple[Any, jax.Array]) -> tuple[jax.Array, None]:
            expert, share = member
            return total + share * self.of(expert, x).astype(jnp.float32), None

        # One member after the other: each product has the form of the student's own, so that equal
        # experts are exactly equal.
        target, _ = jax.lax.scan(add, jnp.zeros(x.shape, jnp.float32),
                                 (weights['of'], weights['share']))
        gap = self.own(weights['own'], x).astype(jnp.float32) - target
        return jnp.square(gap).mean(axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class DistillLoss:
    """The loss of `distill`: which terms are on; how much each counts is in `extra['weights']`."""

    ce: bool
    question: Question
    gap: Gap | None

    def __call__(
        self, cfg: Config, params: Params, rows: Batch, extra: Any, key: jax.Array, share: Share
    ) -> tuple[jax.Array, Terms, dict]:
        """Value, terms and what the forward pass reports, as `Objective.loss`."""
        weights = extra['weights']
        watch = ('stream',) if self.question.layers else ()
        watch += ('routing',) if self.gap else ()
        logits, out = forward(cfg, params, rows['tokens'], rows['segments'], train=True, key=key,
                              watch=watch)
        nats, _ = losses.cross_entropy(logits, rows['tokens'], rows['weights'])
        terms = {'ce': nats * share.weight}
        value = weights['auxiliary'] * losses.auxiliary(out) / share.micro
        value = value + weights['ce'] * terms['ce'] if self.ce else value
        if self.question.logits or self.question.top:
            terms['kd'] = _kd(self.question, logits, rows, weights['temperature']) * share.weight
            value = value + weights['logits'] * terms['kd']
        if self.question.layers:
            pairs = [(rows[STREAM][:, :, n], out['stream'][i])
                     for n, i in enumerate(self.question.layers)]
            terms['hidden'] = share.tokens * sum(
                losses.stream_error(*pair, rows['segments'] > 0) for pair in pairs)
            value = value + weights['hidden'] * terms['hidden']
        if self.gap:
            terms['expert'] = cast(jax.Array, sum(
                expert_error(cfg, self.gap, params, out, int(name.removeprefix('layer_')), members)
                for name, members in extra['experts'].items()) / share.micro)
            value = value + weights['experts'] * terms['expert']
        return value, terms, out


def expert_error(cfg: Config, gap: Gap, params: Params, out: dict[str, Any], layer: int,
                 members: dict[str, Any]) -> jax.Array:
    """Sum over a layer's experts of their mean error over the tokens routed to each; a scalar.

    members: {'of', 'share'} of `gather_experts`. Choices count before any capacity; an expert
    without tokens adds nothing. One pass over the choices sorted by expert, as the layer's own.
    """
    record, count = out['routing'][layer], cfg.experts[layer]
    used = jnp.broadcast_to(out['valid'][:, None], record.ids.shape)
    chosen = routing.Routing(record.ids, record.gates, record.logits, record.probs)
    ids, _ = to_experts(chosen, used, cfg.alias(layer), count)
    sizes = jnp.zeros((count + 1,), jnp.float32).at[ids.ravel()].add(1.0)
    gates = jnp.where(ids < count, (1.0 / jnp.maximum(sizes, 1.0))[ids], 0.0)
    tree = {'own': params[f'layer_{layer}']['moe']['experts'], **jax.lax.stop_gradient(members)}
    x = jax.lax.stop_gradient(record.inputs).astype(jnp.float32)
    error_N1, _ = parallel.evaluate(gap, tree, x, ids, gates)
    return error_N1.sum()


def _kd(question: Question, logits: jax.Array, rows: Batch, temperature: jax.Array) -> jax.Array:
    if question.top:
        theirs, logits = rows[TOP[1]], losses.with_rest(logits, rows[TOP[0]], temperature)
    else:
        theirs = rows[LOGITS]
    return losses.divergence(theirs, logits, temperature, rows['weights'])
