"""The ways in which a leaf trains, one class each; a rule for learned gates would be a fourth.

Each says which arrays train (`shapes`, by name), what they are before the first step (`start`) and
which weights they make of the leaf (`merged`). `keep_zeros`: weights of the leaf that are exactly 0
stay so.

Letters: E experts of a layer, r rank.
"""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.base.sharding import replicated

Leaves = dict[str, jax.Array]  # what trains, by name
Shape = tuple[int, ...]
FACTORS = ('/a', '/b')  # what ends the names of an adapter's two matrices


@dataclasses.dataclass(frozen=True)
class Whole:
    """All of a leaf; its name is its path, and it lies in the params themselves."""

    def shapes(self, path: str, shape: Shape) -> dict[str, Shape]:
        return {path: shape}

    def start(self, path: str, leaf: jax.Array, seed: int) -> Leaves:
        del seed
        return {path: leaf}

    def merged(self, path: str, leaf: jax.Array, trained: Leaves, keep_zeros: bool) -> jax.Array:
        del leaf, keep_zeros
        return trained[path]


@dataclasses.dataclass(frozen=True)
class Slice:
    """Some experts of a leaf [E, ...], ids in ascending order; their name is the leaf's path."""

    ids: tuple[int, ...]

    def shapes(self, path: str, shape: Shape) -> dict[str, Shape]:
        return {path: (len(self.ids), *shape[1:])}

    def start(self, path: str, leaf: jax.Array, seed: int) -> Leaves:
        """The selected experts, float32."""
        del seed
        rows = jnp.take(leaf, jnp.asarray(self.ids, jnp.int32), axis=0)
        return {path: rows.astype(jnp.float32)}

    def merged(self, path: str, leaf: jax.Array, trained: Leaves, keep_zeros: bool) -> jax.Array:
        """The leaf in its dtype, with the trained experts in place of its own."""
        del keep_zeros
        return jnp.asarray(leaf).at[jnp.asarray(self.ids, jnp.int32)].set(
            trained[path].astype(leaf.dtype), indices_are_sorted=True, unique_indices=True)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Low-rank matrices path/a [..., in, r] and path/b [..., r, out] of a frozen W [..., in, out].

    W + scale a b stands for W (Hu et al. 2021); a leading axis, as of a stack of experts, is kept.
    """

    rank: int
    scale: float

    def shapes(self, path: str, shape: Shape) -> dict[str, Shape]:
        *stack, rows, columns = shape
        return {f'{path}/a': (*stack, rows, self.rank), f'{path}/b': (*stack, self.rank, columns)}

    def start(self, path: str, leaf: jax.Array, seed: int) -> Leaves:
        """a normal with deviation 1/sqrt(in), b zero; the draw follows the seed and the path."""
        first, second = self.shapes(path, tuple(leaf.shape)).values()
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
        a = jax.random.normal(key, first, jnp.float32) / np.float32(leaf.shape[-2]**0.5)
        pair = a, jnp.zeros(second, jnp.float32)
        return {path + end: jax.device_put(matrix, replicated(leaf))
                for end, matrix in zip(FACTORS, pair, strict=True)}

    def merged(self, path: str, leaf: jax.Array, trained: Leaves, keep_zeros: bool) -> jax.Array:
        """W + scale a b in W's dtype, added in float32; W's zeros stay with `keep_zeros`."""
        a, b = (trained[path + end] for end in FACTORS)
        # Behind barriers, or fusions would round the product in other ways.
        a, b = jax.lax.optimization_barrier((a * self.scale, b))
        change = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        wide = leaf.astype(jnp.float32)
        change = jnp.where(wide != 0, change, 0.0) if keep_zeros else change
        return jax.lax.optimization_barrier((wide + change).astype(leaf.dtype))


Kind = Whole | Slice | Adapter
