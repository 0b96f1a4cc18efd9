"""Experts on rows sorted by expert, by native kernels, some rows at a time.

S rows, D width, F hidden, E experts, C rows of a chunk. The memory of a chunk's hidden layer is
used again for the next one: it stays in the cache, and no fresh memory is allocated, which can cost
more than the arithmetic where the hidden layer of all rows is large. For the gradient the products
that `Ffn.hidden` asks for are kept, [S, F] each, and nothing else, as in `grouped_loop`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from moe_jax.base.tree import Tree
from moe_jax.base.varying import alike
from moe_jax.base.vjp import custom_vjp
from moe_jax.experts.grouped_loop import Products, Saved, hidden_of, products_of
from moe_jax.kernels import native
from moe_jax.kernels.bits import as_bits, from_bits
from moe_jax.kernels.schedule import read, write
from moe_jax.layers.ffn import Ffn, Weights, down

CHUNK = 2**22  # numbers of a hidden layer that exist at a time
LEAST = 256  # rows of a chunk: where groups are large, a chunk lays their matrices out anew

Pairs = Mapping[str, tuple[jax.Array, jax.Array]]
# (rows of each group in the chunk [E], the chunk's part of the inputs) ->
# (a tree of outputs [C, ...] of its rows, pairs of [C, A] and [C, B] to be multiplied and summed by
# group)
Part = Callable[[jax.Array, Tree], tuple[Tree, Pairs]]


@custom_vjp(0)
def apply(function: Ffn, weights: Weights, rows: jax.Array, sizes: jax.Array) -> jax.Array:
    """y [S, D], row s by expert e where it lies in group e; arguments as `loop.apply`."""
    return _evaluate(function, weights, rows, sizes)[0]


def _forward(
    function: Ffn, weights: Weights, rows: jax.Array, sizes: jax.Array
) -> tuple[jax.Array, Saved]:
    y, products = _evaluate(function, weights, rows, sizes)
    return y, (weights, rows, sizes, products)


def _evaluate(
    function: Ffn, weights: Weights, rows: jax.Array, sizes: jax.Array
) -> tuple[jax.Array, Products]:
    """y [S, D], and the products that the hidden layer asks for [S, F]."""
    cast = cast_to(weights, rows.dtype)

    def part(mine, rows):
        y, _, products = evaluate(function, cast, rows, mine)
        return (y, products), {}

    return over_chunks(part, rows, sizes, weights['down'].shape[1])[0]


def evaluate(
    function: Ffn, weights: Weights, rows: jax.Array, sizes: jax.Array
) -> tuple[jax.Array, jax.Array, Products]:
    """The outputs [C, D], the hidden layer [C, F] and the products that it asks for.

    weights: as `cast_to` gives them.
    """
    linear = partial(_linear, sizes)
    products, hidden = products_of(function, weights, rows, linear)
    return down(weights, hidden, linear), hidden, products


def _backward(
    function: Ffn, saved: Saved, dy: jax.Array
) -> tuple[Weights, jax.Array, None]:
    weights, rows, sizes, kept = saved
    cast = cast_to(weights, rows.dtype)

    def part(mine, given):
        rows, dy, products = given
        hidden, pull = jax.vjp(partial(hidden_of, function), products)
        by_transposed = partial(native.matmul, sizes=mine, transposed=True)
        by_products, = pull(by_transposed(dy, cast['down']))
        dx: Any = sum(by_transposed(du, cast[name]).astype(jnp.float32)
                 for name, du in by_products.items())
        pairs = {name: (rows, du) for name, du in by_products.items()} | {'down': (hidden, dy)}
        ones = jnp.ones((rows.shape[0], 1), rows.dtype)
        biases = {f'{name}_bias': (ones, du) for name, (_, du) in pairs.items()}
        return dx.astype(rows.dtype), {name: pair for name, pair in (pairs | biases).items()
                                       if name in weights}

    dtypes = {name: w.dtype for name, w in weights.items()}
    dx, dweights = over_chunks(part, (rows, dy, kept), sizes, weights['down'].shape[1], dtypes)
    return {name: dw if weights[name].ndim == 3 else dw[:, 0] for name, dw in dweights.items()
            }, dx, None


apply.defvjp(_forward, _backward)


def over_chunks(
    part: Part, inputs: Tree, sizes: jax.Array, wide: int,
    dtypes: Mapping[str, DTypeLike] | None = None,
) -> tuple[Tree, dict[str, jax.Array]]:
    """The outputs of `part` for all rows [S, ...], and its pairs summed by group, [E, A, B] each.

    inputs: tree of [S, ...]; sizes int32 [E]; wide: numbers that a row of a chunk takes; dtypes: of
    sums, float32 where not named.
    """
    dtypes, count = dtypes or {}, jax.tree.leaves(inputs)[0].shape[0]
    cut = _Cut.of(count, wide)
    if cut.count == 1:
        outputs, pairs = part(sizes, inputs)
        return outputs, {
            name: native.outer(*pair, sizes, cast(DTypeLike, dtypes.get(name, jnp.float32)))
            for name, pair in pairs.items()}
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct((cut.size, *a.shape[1:]), a.dtype), inputs)
    like, pairs = jax.eval_shape(part, sizes, one)
    raw = jax.tree.map(as_bits, inputs)

    def step(i, carry):
        outputs, totals = carry
        slices = jax.tree.map(lambda a, b: read(a, cut.first(i), cut.size, b.dtype), raw, inputs)
        mine, pairs = part(cut.sizes(sizes, i), slices)
        outputs = jax.tree.map(lambda a, b: write(a, b, cut.first(i), b.dtype), outputs, mine)
        new = cut.new(sizes, i)
        return outputs, {name: native.outer_into(totals[name], *pair, *new)
                         for name, pair in pairs.items()}

    start = jax.tree.map(lambda a: as_bits(jnp.zeros((count, *a.shape[1:]), a.dtype)), like), {
        name: jnp.zeros((sizes.shape[0], a.shape[1], b.shape[1]), jnp.float32)
        for name, (a, b) in pairs.items()}
    outputs, totals = jax.lax.fori_loop(0, cut.count, step, alike(start, inputs, sizes))
    return (jax.tree.map(lambda a, b: from_bits(a, b.dtype), outputs, like),
            {name: a.astype(dtypes.get(name, jnp.float32)) for name, a in totals.items()})


class _Cut(NamedTuple):
    """S rows cut into `count` chunks of `size` rows. The last begins early enough to have as many:
    its first rows were in the chunk before."""

    rows: int
    count: int
    size: int

    @classmethod
    def of(cls, rows: int, wide: int) -> '_Cut':
        count = max(1, -(-rows // max(LEAST, CHUNK // wide)))
        return cls(rows, count, -(-rows // count))

    def first(self, i: jax.Array) -> jax.Array:
        return jnp.minimum(i * self.size, self.rows - self.size)

    def sizes(self, sizes: jax.Array, i: jax.Array) -> jax.Array:
        """Rows of each group in chunk i."""
        return _between(sizes, self.first(i), self.first(i) + self.size)

    def new(self, sizes: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Of the rows that no earlier chunk had: how many are of each group, which groups begin
        with them (empty ones too), and where in the chunk they begin."""
        low, high = i * self.size, self.first(i) + self.size
        start = jnp.cumsum(sizes) - sizes
        begins = (start >= low) & ((start < high) | (i == self.count - 1))
        return _between(sizes, low, high), begins, low - self.first(i)


def _between(sizes: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """The number of rows of each group at low, ..., high - 1, int32 [E]."""
    ends = jnp.cumsum(sizes)
    return (jnp.clip(ends, low, high) - jnp.clip(ends - sizes, low, high)).astype(jnp.int32)


def cast_to(weights: Weights, dtype: DTypeLike) -> Weights:
    """The kernels in the dtype of the rows, once for all chunks; biases as they are."""
    return {name: w.astype(dtype) if w.ndim == 3 else w for name, w in weights.items()}


def _linear(
    sizes: jax.Array, x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """As `linear` of `kernels`, with kernel [E, D, F] and bias [E, F]."""
    y = native.matmul(x, kernel, sizes, transposed=False)
    if bias is None:
        return y
    row = jnp.arange(x.shape[0], dtype=jnp.int32)
    expert = jnp.searchsorted(jnp.cumsum(sizes), row, side='right')
    own = bias.astype(jnp.float32).at[expert].get(mode='fill', fill_value=0)
    return (y.astype(jnp.float32) + own).astype(y.dtype)
