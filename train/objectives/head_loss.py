"""Cross-entropy from what the head reads, without the logits of all positions at once.

B rows, T tokens, D width, V vocabulary. The gradient of a block's logits is at hand where they are:
both gradients are formed in the forward pass and no logits are kept or computed again.
"""


import jax
import jax.numpy as jnp

from moe_jax.base import sharding
from moe_jax.base.tree import Params
from moe_jax.base.varying import alike
from moe_jax.base.vjp import custom_vjp
from moe_jax.config import Config
from moe_jax.kernels.outer import summed_outer
from moe_jax.model.decoder import unembed
from train.objectives import losses

BLOCK = 2**23  # logits that exist at a time: 32 MB of float32
Block = tuple[jax.Array, jax.Array, jax.Array]  # of x, targets and weights
Gradients = tuple[jax.Array, jax.Array]  # of x [N, D] and table [V, D]


def cross_entropy(
    cfg: Config, params: Params, x: jax.Array, tokens: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """As `losses.cross_entropy` of the logits of x [B, T, D], which `model.hidden` gives.

    On a mesh the logits are whole: each device has those of its rows.
    """
    if sharding.current() is not None:
        return losses.cross_entropy(unembed(cfg, params, x), tokens, weights)
    targets, weights = jnp.roll(tokens, -1, axis=1), losses.predicted(weights)
    table = params['embed']['tokens'] if cfg.tied else params['head']['kernel']
    rows = x.reshape(-1, x.shape[-1])
    nats = _summed(rows, table.astype(x.dtype), targets.ravel(), weights.ravel(), cfg.logit_scale)
    return nats, jnp.sum(weights)


@custom_vjp(4)
def _summed(x: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array, scale: float
            ) -> jax.Array:
    """Summed weighted nats of x [N, D] against targets [N]; table [V, D]."""
    def block(total: jax.Array, part: Block) -> tuple[jax.Array, None]:
        return total + _logits(*part, table, scale)[0], None

    start = alike(jnp.float32(0.0), x, table, targets, weights)
    return jax.lax.scan(block, start, _blocks(len(table), x, targets, weights))[0]


def _forward(x: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array, scale: float
             ) -> tuple[jax.Array, Gradients]:
    """`_summed`, and its gradients by x and table."""
    def block(carry: tuple[jax.Array, jax.Array], part: Block
              ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        total, dtable = carry
        nats, dlogits = _logits(*part, table, scale)
        dlogits = (dlogits * scale).astype(x.dtype)
        dx = jnp.dot(dlogits, table, preferred_element_type=jnp.float32)
        dtable = dtable + summed_outer(dlogits, part[0])
        return (total + nats, dtable), dx.astype(x.dtype)

    start = alike((jnp.float32(0.0), jnp.zeros(table.shape, jnp.float32)),
                  x, table, targets, weights)
    (total, dtable), dx = jax.lax.scan(block, start, _blocks(len(table), x, targets, weights))
    return total, (dx.reshape(-1, x.shape[1])[:len(x)], dtable.astype(table.dtype))


def _backward(scale: float, saved: Gradients, dy: jax.Array
              ) -> tuple[jax.Array, jax.Array, None, None]:
    dx, dtable = saved
    return (dx * dy.astype(dx.dtype)), (dtable * dy.astype(dtable.dtype)), None, None


_summed.defvjp(_forward, _backward)


def _logits(x: jax.Array, targets: jax.Array, weights: jax.Array, table: jax.Array, scale: float
            ) -> tuple[jax.Array, jax.Array]:
    """Summed nats of a block of positions, and their gradient by its logits [M, V]."""
    logits = scale * jax.lax.dot_general(x, table, (((1,), (1,)), ((), ())),
                                         preferred_element_type=jnp.float32)
    total = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    mine = targets[:, None] == jnp.arange(logits.shape[1])[None]
    slope = (jnp.exp(logits - total[:, None]) - mine.astype(jnp.float32)) * weights[:, None]
    return jnp.sum((total - chosen) * weights), slope


def _blocks(vocab: int, *arrays: jax.Array) -> Block:
    """Arrays [N, ...] in equal blocks, [n, M, ...]; what fills the last one weighs nothing."""
    count = arrays[0].shape[0]
    number = -(-count * vocab // BLOCK)
    rows = -(-count // number)
    x, targets, weights = (
        jnp.pad(a, ((0, number * rows - count), *((0, 0),) * (a.ndim - 1))).reshape(
            number, rows, *a.shape[1:]) for a in arrays)
    return x, targets, weights
