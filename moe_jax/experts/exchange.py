"""Rows that travel to the device of their expert, are evaluated there, and travel back; dropless.

Inside a `shard_map`, over one axis of n devices, each with E/n experts. S rows of each device, D
width, C slots: as many rows as two devices exchange at a time. Each round sends C rows from every
device to every other, and the rounds go on until all are served, so that any imbalance is exact and
buffers hold n*C rows and not the n*S of the worst case.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from moe_jax.experts.grouped import Expert, grouped_apply, grouped_gradients


class Exchange(NamedTuple):
    """axis: over which rows travel; axes: all of the mesh, which must agree on the rounds; slots C.
    """

    axis: str
    axes: tuple[str, ...]
    slots: int


class _Places(NamedTuple):
    """Where a device's rows go: rows [n] for each device, their first row [n], the end of each
    expert's rows [E], and the rounds it takes until all devices are served."""

    rows: jax.Array
    first: jax.Array
    ends: jax.Array
    rounds: jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def exchanged_apply(
    function: Expert, how: Exchange, weights: Any, rows: jax.Array, sizes: jax.Array
) -> jax.Array:
    """As `grouped_apply`, with E/n experts at hand and rows [S, D] of all E, sizes int32 [E]."""
    places = _places(how, sizes)
    width = jax.eval_shape(function, jax.tree.map(lambda w: w[0], weights), rows[:1]).shape[-1]

    def one(r, y):
        index, expert = _sent(how, places, sizes, r)
        arrived = _Arrived.of(how, weights, expert)
        found = grouped_apply(function, weights, arrived.sort(_send(how, rows, index)),
                              arrived.sizes)
        return _received(how, places, r, arrived.unsort(found), y)

    y = jnp.zeros((rows.shape[0], width), rows.dtype)
    return jax.lax.fori_loop(0, places.rounds, one, y)


def _forward(function, how, weights, rows, sizes):
    return exchanged_apply(function, how, weights, rows, sizes), (weights, rows, sizes)


def _backward(function, how, saved, dy):
    weights, rows, sizes = saved
    places = _places(how, sizes)

    def one(r, carry):
        dweights, dx = carry
        index, expert = _sent(how, places, sizes, r)
        arrived = _Arrived.of(how, weights, expert)
        dw, back = grouped_gradients(
            function, weights, arrived.sort(_send(how, rows, index)), arrived.sizes,
            arrived.sort(_send(how, dy, index)))
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


def _sent(how, places, sizes, r):
    """What round r sends: index of the rows [n, C], and the receiver's number of their expert.

    Places without a row have an index out of range, and E/n as their expert.
    """
    each = sizes.shape[0] // places.rows.shape[0]
    offset = r * how.slots + jnp.arange(how.slots, dtype=jnp.int32)[None]
    real = offset < places.rows[:, None]
    index = places.first[:, None] + offset
    expert = jnp.searchsorted(places.ends, index, side='right').astype(jnp.int32) % each
    beyond = jnp.iinfo(jnp.int32).max
    return jnp.where(real, index, beyond), jnp.where(real, expert, each)


def _send(how, rows, index):
    """rows [S, D] to the devices that want them: [n, C, D], from each device C rows."""
    return _swap(how, rows.at[index].get(mode='fill', fill_value=0))


def _swap(how, blocks):
    return jax.lax.all_to_all(blocks, how.axis, split_axis=0, concat_axis=0, tiled=True)


def _received(how, places, r, back, y):
    """y [S, D] with the rows of round r put where they came from; back [n, C, D] as evaluated."""
    back = _swap(how, back)
    row = jnp.arange(y.shape[0], dtype=jnp.int32)
    total = jnp.cumsum(places.rows)
    device = jnp.minimum(jnp.searchsorted(total, row, side='right'), len(total) - 1)
    offset = row - places.first[device] - r * how.slots
    mine = (offset >= 0) & (offset < how.slots) & (row < total[-1])
    found = back[device, jnp.clip(offset, 0, how.slots - 1)]
    return jnp.where(mine[:, None], found.astype(y.dtype), y)


class _Arrived(NamedTuple):
    """Rows that arrived, n*C of them: how to sort them by expert and back, and sizes [E/n]."""

    order: jax.Array
    inverse: jax.Array
    sizes: jax.Array
    shape: tuple[int, int]

    @classmethod
    def of(cls, how: Exchange, weights: Any, expert: jax.Array) -> '_Arrived':
        flat = _swap(how, expert).ravel()
        order = jnp.argsort(flat, stable=True).astype(jnp.int32)
        inverse = jnp.zeros_like(order).at[order].set(jnp.arange(len(flat), dtype=jnp.int32))
        count = jax.tree.leaves(weights)[0].shape[0]
        sizes = jnp.zeros((count + 1,), jnp.int32).at[flat].add(1)[:count]
        return cls(order, inverse, sizes, expert.shape)

    def sort(self, blocks: jax.Array) -> jax.Array:
        return blocks.reshape(len(self.order), -1)[self.order]

    def unsort(self, rows: jax.Array) -> jax.Array:
        return rows[self.inverse].reshape(*self.shape, -1)
