"""Rows that travel to the device of their expert, are evaluated there, and travel back; dropless.

Inside a `shard_map`, over one axis of n devices, each with E/n experts. S rows of each device, D
width, C slots: as many rows as two devices exchange at a time. Each round sends C rows from every
device to every other, and the rounds go on until all are served, so that any imbalance is exact and
buffers hold n*C rows and not the n*S of the worst case.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe_jax.base.tree import Tree
from moe_jax.base.vjp import custom_vjp
from moe_jax.experts.grouped import grouped_apply, grouped_gradients
from moe_jax.experts.sorting import Sorted, by_expert
from moe_jax.kernels.loop import Expert
from moe_jax.kernels.table import Choice


class Exchange(NamedTuple):
    """The plan by which rows travel and are evaluated."""

    axis: str  # over which they travel
    axes: tuple[str, ...]  # all of the mesh, which must agree on the rounds
    slots: int  # C
    choice: Choice  # the backend for the n*C rows that a device evaluates at a time


Saved = tuple[Tree, jax.Array, jax.Array]  # weights, rows, sizes


class _Places(NamedTuple):
    """The devices that one device's rows go to."""

    rows: jax.Array  # [n]: how many go to each
    first: jax.Array  # [n]: the first of these
    ends: jax.Array  # [E]: the end of each expert's rows
    rounds: jax.Array  # until all devices are served


@custom_vjp(0, 1)
def exchanged_apply(
    function: Expert, how: Exchange, weights: Tree, rows: jax.Array, sizes: jax.Array
) -> jax.Array:
    """The outputs of `grouped_apply`, with E/n experts at hand; rows [S, D] and sizes int32 [E] of
    all E."""
    places = _places(how, sizes)
    width = jax.eval_shape(function, jax.tree.map(lambda w: w[0], weights), rows[:1]).shape[-1]

    def one(r, y):
        index, expert = _sent(how, places, sizes, r)
        arrived = _Arrived.of(how, weights, expert)
        outputs = grouped_apply(function, how.choice, weights,
                                arrived.sort(_send(how, rows, index)), arrived.by.sizes)
        return _received(how, places, r, arrived.unsort(outputs), y)

    y = jnp.zeros((rows.shape[0], width), rows.dtype)
    return jax.lax.fori_loop(0, places.rounds, one, y)


def _forward(
    function: Expert, how: Exchange, weights: Tree, rows: jax.Array, sizes: jax.Array
) -> tuple[jax.Array, Saved]:
    return exchanged_apply(function, how, weights, rows, sizes), (weights, rows, sizes)


def _backward(
    function: Expert, how: Exchange, saved: Saved, dy: jax.Array
) -> tuple[Tree, jax.Array, None]:
    weights, rows, sizes = saved
    places = _places(how, sizes)

    def one(r, carry):
        dweights, dx = carry
        index, expert = _sent(how, places, sizes, r)
        arrived = _Arrived.of(how, weights, expert)
        dw, back = grouped_gradients(
            function, how.choice, weights, arrived.sort(_send(how, rows, index)),
            arrived.by.sizes, arrived.sort(_send(how, dy, index)))
        return (jax.tree.map(jnp.add, dweights, dw),
                _received(how, places, r, arrived.unsort(back), dx))

    start = jax.tree.map(jnp.zeros_like, weights), jnp.zeros_like(rows)
    dweights, dx = jax.lax.fori_loop(0, places.rounds, one, start)
    return dweights, dx, None


exchanged_apply.defvjp(_forward, _backward)


def _places(how: Exchange, sizes: jax.Array) -> _Places:
    rows = sizes.reshape(jax.lax.axis_size(how.axis), -1).sum(axis=1)
    rounds = jax.lax.pmax((rows.max() + how.slots - 1) // how.slots, how.axes)
    return _Places(rows, jnp.cumsum(rows) - rows, jnp.cumsum(sizes), rounds)


def _sent(
    how: Exchange, places: _Places, sizes: jax.Array, r: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The rows of round r: their index [n, C], and the receiver's number of their expert [n, C].

    Places without a row have an index out of range, and E/n as their expert.
    """
    each = sizes.shape[0] // places.rows.shape[0]
    offset = r * how.slots + jnp.arange(how.slots, dtype=jnp.int32)[None]
    real = offset < places.rows[:, None]
    index = places.first[:, None] + offset
    expert = jnp.searchsorted(places.ends, index, side='right').astype(jnp.int32) % each
    beyond = jnp.iinfo(jnp.int32).max
    return jnp.where(real, index, beyond), jnp.where(real, expert, each)


def _send(how: Exchange, rows: jax.Array, index: jax.Array) -> jax.Array:
    """rows [S, D] to the devices that want them: [n, C, D], from each device C rows."""
    return _swap(how, rows.at[index].get(mode='fill', fill_value=0))


def _swap(how: Exchange, blocks: jax.Array) -> jax.Array:
    """Block i of [n, C, ...] to device i, and the block of each device back."""
    return jax.lax.all_to_all(blocks, how.axis, split_axis=0, concat_axis=0, tiled=True)


def _received(
    how: Exchange, places: _Places, r: jax.Array, back: jax.Array, y: jax.Array
) -> jax.Array:
    """y [S, D] with the rows of round r put where they came from; back [n, C, D] as evaluated."""
    back = _swap(how, back)
    row = jnp.arange(y.shape[0], dtype=jnp.int32)
    total = jnp.cumsum(places.rows)
    device = jnp.minimum(jnp.searchsorted(total, row, side='right'), len(total) - 1)
    offset = row - places.first[device] - r * how.slots
    mine = (offset >= 0) & (offset < how.slots) & (row < total[-1])
    row = back[device, jnp.clip(offset, 0, how.slots - 1)]
    return jnp.where(mine[:, None], row.astype(y.dtype), y)


class _Arrived(NamedTuple):
    """Rows that arrived, n*C of them, by their experts of this device [E/n]."""

    by: Sorted
    shape: tuple[int, ...]

    @classmethod
    def of(cls, how: Exchange, weights: Tree, expert: jax.Array) -> '_Arrived':
        count = jax.tree.leaves(weights)[0].shape[0]
        return cls(by_expert(_swap(how, expert).ravel(), count), expert.shape)

    def sort(self, blocks: jax.Array) -> jax.Array:
        return blocks.reshape(len(self.by.order), -1)[self.by.order]

    def unsort(self, rows: jax.Array) -> jax.Array:
        return rows[self.by.inverse].reshape(*self.shape, -1)
