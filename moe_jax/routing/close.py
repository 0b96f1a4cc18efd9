"""Closing router rows: two ways, for two meanings.

`never_chosen`: a closed row keeps its share of the softmax, and is not chosen (dropping that
preserves mass). `shut`: the router computes as if the closed rows were not there, in the shapes of
the whole one, so that one compiled program serves any number of choices. R router rows.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

# Far below any logit, and finite: infinities would meet zeros on the way. An update of AdamW is
# below its rounding, and its square is finite, unlike that of 1e30.
SHUT = -1e9
LEAVES = ('bias', 'correction')  # the bias takes a row out of the gates, the correction out of ties


def never_chosen(ranked_NR: jax.Array, closed: Sequence[bool] | jax.Array) -> jax.Array:
    """Scores that rank the rows, -inf for those marked in `closed` [R]."""
    # Added, never multiplied: a negative score would change its sign.
    return ranked_NR + jnp.where(jnp.asarray(closed), -jnp.inf, 0.0)[None]


def shut(
    router: Mapping[str, jax.Array], open_R: jax.Array, names: Sequence[str] = LEAVES
) -> dict[str, jax.Array]:
    """The router with the rows outside `open` [R] closed by its leaves `names`.

    A leaf that the router lacks counts as zeros. In float16, which has no such number, the value is
    -inf and serves as well.
    """
    leaves = {}
    for name in names:
        leaf = router.get(name)
        leaf = jnp.zeros(open_R.shape, jnp.float32) if leaf is None else leaf
        leaves[name] = jnp.where(open_R, leaf, jnp.asarray(SHUT, leaf.dtype))
    return {**router, **leaves}


def open_rows(bias_R: jax.Array) -> jax.Array:
    """Which rows of a router are open [R], from its bias."""
    return bias_R.astype(jnp.float32) > SHUT / 2
