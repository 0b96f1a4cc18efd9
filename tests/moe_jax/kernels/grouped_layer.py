"""One layer of experts on sorted rows, for the forms that evaluate some rows at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.layers import ffn

D, F = 8, 12
SIZES = (530, 0, 17, 256, 1, 300)  # several blocks, none, few rows, one whole block
ROWS = sum(SIZES) + 5  # some rows are of no group


def layer(kind, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = {'up': (D, F), 'down': (F, D), 'up_bias': (F,), 'down_bias': (D,)}
    shapes |= {} if kind in ffn.UNGATED else {'gate': (D, F), 'gate_bias': (F,)}
    weights = {name: jnp.asarray(0.5 * rng.normal(size=(len(SIZES), *shape)), dtype)
               for name, shape in shapes.items()}
    x, dy = (jnp.asarray(rng.normal(size=(ROWS, D)), dtype) for _ in range(2))
    return ffn.Ffn(ffn.FFN[kind] if kind != 'swiglu_clamped' else partial(
        ffn.swiglu_clamped, limit=1.0, alpha=1.7)), weights, x, dy


def by_group(function, weights, x):
    """The rows of each group by its own expert, one after the other; zeros for the rest."""
    ends = np.cumsum(SIZES)
    parts = [function(jax.tree.map(lambda w, e=e: w[e], weights), x[end - SIZES[e]:end])
             for e, end in enumerate(ends)]
    return jnp.concatenate([*parts, jnp.zeros((ROWS - sum(SIZES), D), x.dtype)])


def both(run, weights, x, dy):
    y, pull = jax.vjp(run, weights, x)
    return y, *pull(dy)
