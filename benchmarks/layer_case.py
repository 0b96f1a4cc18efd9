"""A MoE layer to be timed: sizes, random inputs, and the layer's functions and their dense rivals.

Letters: T tokens, D width, F hidden width, E experts, K experts per token, S = T K rows.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.experts import evaluate
from moe_jax.layers import ffn

SKEW = 0.3  # standard deviation of the experts' log popularity
Arrays = tuple[Any, jax.Array, jax.Array, jax.Array]  # weights, x [T, D], ids and gates [T, K]


class Case(NamedTuple):
    """The sizes of a layer, SwiGLU or GELU, and the dtype of its weights and tokens."""

    tokens: int
    width: int
    hidden: int
    experts: int
    topk: int
    gated: bool
    dtype: str = 'bfloat16'

    @property
    def rows(self) -> int:
        """S."""
        return self.tokens * self.topk

    @property
    def flops(self) -> int:
        """Of the matrix products of a forward pass."""
        return 2 * self.rows * self.width * self.hidden * (3 if self.gated else 2)

    @property
    def function(self) -> ffn.Ffn:
        """Of one expert."""
        return ffn.Ffn(ffn.swiglu if self.gated else ffn.gelu)

    def __str__(self) -> str:
        return (f'T={self.tokens} D={self.width} F={self.hidden} E={self.experts} K={self.topk} '
                f'{"SwiGLU" if self.gated else "GELU"} {self.dtype}')


def inputs(case: Case, seed: int) -> Arrays:
    """Weights, tokens, and the ids and gates of a router with popular and rare experts."""
    rng = np.random.default_rng(seed)
    score = rng.gumbel(size=(case.tokens, case.experts)) + SKEW * rng.normal(size=case.experts)
    ids = np.argsort(-score, axis=1)[:, :case.topk].astype(np.int32)
    gates = rng.dirichlet(np.ones(case.topk), case.tokens).astype(np.float32)
    leaves = {'gate': (case.width, case.hidden)} if case.gated else {}
    leaves |= {'up': (case.width, case.hidden), 'down': (case.hidden, case.width)}
    key, *keys = jax.random.split(jax.random.key(seed), len(leaves) + 1)
    weights = {name: normal(k, (case.experts, *shape), case.dtype, shape[0]**-0.5)
               for k, (name, shape) in zip(keys, leaves.items(), strict=True)}
    x = normal(key, (case.tokens, case.width), case.dtype)
    return weights, x, jnp.asarray(ids), jnp.asarray(gates)


def forward(case: Case) -> Callable[..., jax.Array]:
    """The layer, a function of `inputs`: [T, D]."""
    def run(weights, x, ids, gates):
        return evaluate.dropless(case.function, weights, x, ids, gates)[0]

    return run


def both(case: Case) -> Callable[..., Any]:
    """The gradients of the mean square of the layer's output by weights, tokens and gates."""
    def run(weights, x, ids, gates):
        def loss(weights, x, gates):
            y = forward(case)(weights, x, ids, gates)
            return jnp.square(y.astype(jnp.float32)).mean()

        return jax.grad(loss, argnums=(0, 1, 2))(weights, x, gates)

    return run


def sides(case: Case) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The shapes of the products of one expert on all S rows."""
    s, d, f = case.rows, case.width, case.hidden
    return [((s, d), (d, f))] * (2 if case.gated else 1) + [((s, f), (f, d))]


def dense(case: Case) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The products of one expert on all S rows, summed in float32, and random arguments of them."""
    def run(*pairs):
        return [jnp.dot(a, b, preferred_element_type=jnp.float32).astype(a.dtype) for a, b in pairs]

    shapes = sides(case)
    keys = jax.random.split(jax.random.key(2), (len(shapes), 2))
    return run, tuple((normal(keys[i, 0], left, case.dtype), normal(keys[i, 1], right, case.dtype))
                      for i, (left, right) in enumerate(shapes))


def normal(key: jax.Array, shape: Sequence[int], dtype: str, scale: float = 1.0) -> jax.Array:
    """Random numbers with a standard deviation of `scale`."""
    return _normal(key, tuple(shape), dtype, scale)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _normal(key: jax.Array, shape: tuple[int, ...], dtype: str, scale: float) -> jax.Array:
    return (jax.random.normal(key, shape, jnp.float32) * scale).astype(dtype)
