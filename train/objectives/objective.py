"""The objective of a step, a value that `fit` takes; by default the language model's own loss.

Letters: A micro-batches of a step, B rows, T tokens.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.model.decoder import hidden
from train.objectives import head_loss, losses

Batch = dict[str, Any]
Terms = dict[str, jax.Array]


class Share(NamedTuple):
    """What turns the sums of one micro-batch into its share of the means of the whole batch.

    weight: 1 / total of the weights of predicted tokens, tokens: 1 / number of tokens that are not
    padding, both over all A micro-batches, float32; micro: A.
    """

    weight: jax.Array
    tokens: jax.Array
    micro: int


def share_of(batch: Batch) -> Share:
    """The `Share` of each micro-batch of a batch [A, B, T]."""
    weight = batch['weights'][:, :, 1:].sum()
    valid = (batch['segments'] > 0).sum().astype(jnp.float32)
    return Share(1.0 / jnp.where(weight > 0, weight, 1.0), 1.0 / jnp.maximum(valid, 1.0),
                 batch['tokens'].shape[0])


Loss = Callable[[Config, Params, Batch, Any, jax.Array, Share], tuple[jax.Array, Terms, dict]]


class Objective(NamedTuple):
    """The loss that `fit` minimizes.

    name: identifies it to a run's folder, settings included.
    loss(cfg, params, rows, extra, key, share) -> (value, terms, out): of one micro-batch [B, T].
      It must be hashable, as a frozen dataclass is: the step is compiled for it. value is what is
      minimized and terms, by name, what is logged beside it; both are summed over micro-batches.
      out is what `moe_jax.model.decoder.forward` reports.
    extra: arrays that the loss reads; an argument of the compiled step, never a constant in it.
    prepare(batch) -> batch: adds arrays [A, B, T, ...] just before a step, such as what a teacher
      says to its tokens; None: nothing. Not part of the compiled step: it may run elsewhere.
    reads: names of further arrays [B, T, ...] that the batches themselves must hold.
    """

    name: str
    loss: Loss
    extra: Any = None
    prepare: Callable[[Batch], Batch] | None = None
    reads: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Cross-entropy of the next token plus the routers' auxiliary losses."""

    def __call__(
        self, cfg: Config, params: Params, rows: Batch, extra: Any, key: jax.Array, share: Share
    ) -> tuple[jax.Array, Terms, dict]:
        """Value, {'ce'} in nats per weighted token, and what the forward pass reports."""
        del extra
        x, out = hidden(cfg, params, rows['tokens'], rows['segments'], train=True, key=key)
        nats, _ = head_loss.cross_entropy(cfg, params, x, rows['tokens'], rows['weights'])
        value = nats * share.weight + losses.auxiliary(out) / share.micro
        return value, {'ce': nats * share.weight}, out


LANGUAGE_MODEL = Objective('language model', LanguageModel())
