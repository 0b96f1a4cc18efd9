"""The experts of a layer over the devices of a mesh: one `shard_map`, equal to `experts.dropless`.

N tokens, D width, E experts, F hidden units, K choices per token, n devices of the axis 'expert'.
Tokens are split over the row axes of the mesh, experts as `sharding.fitted` says; the form in which
they meet is one of `forms`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from moe_jax.base import sharding
from moe_jax.base.tree import Params
from moe_jax.experts import evaluate as experts
from moe_jax.experts import forms, grouped
from moe_jax.experts.exchange import Exchange, exchanged_apply
from moe_jax.experts.forms import Form, Split
from moe_jax.kernels.loop import Expert
from moe_jax.layers.ffn import Ffn

Specs = Any  # a tree of P, one for each leaf of the weights


class _Layout(NamedTuple):
    """The layout of experts on a mesh: the specs of their weights, their split, and the form."""

    specs: Specs
    split: Split
    form: Form


def evaluate(
    ffn: Expert,
    weights: experts.Weights,
    x: jax.Array,
    ids: jax.Array,
    gates: jax.Array,
    *,
    form: Form | None = None,
) -> tuple[jax.Array, jax.Array]:
    """As `experts.dropless`, on the mesh at hand (`sharding.current`), or on the one device.

    Where ffn is not an `Ffn`, whose hidden units add up, each expert is kept whole. form: by
    default the one that sends least; ValueError where experts do not lie so.
    """
    mesh = sharding.current()
    if mesh is None:
        return experts.dropless(ffn, weights, x, ids, gates)
    count, parts = experts.number_of(weights), sharding.row_parts(mesh)
    layout = _layout(mesh, weights, isinstance(ffn, Ffn), ids.shape[1], form)
    n, kept = x.shape[0], ids < count
    rows = P(sharding.row_axes(mesh))
    padding = -n % parts
    x, gates = (jnp.pad(a, ((0, padding), (0, 0))) for a in (x, gates))
    ids = jnp.pad(ids, ((0, padding), (0, 0)), constant_values=count)
    run = partial(_on_device, ffn, mesh, layout, count)
    y = jax.shard_map(run, mesh=mesh, in_specs=(layout.specs, rows, rows, rows), out_specs=rows,
                      check_vma=False)(weights, x, ids, gates)
    return y[:n], kept


def _on_device(
    ffn: Expert, mesh: AbstractMesh, layout: _Layout, count: int, weights: experts.Weights,
    x: jax.Array, ids: jax.Array, gates: jax.Array,
) -> jax.Array:
    """One device's part: its tokens in, their outputs back."""
    weights = _whole_over_fsdp(weights, layout.specs)
    weights = _bias_once(weights, layout.split.by_hidden)
    elsewhere = tuple(a for a in layout.split.by_hidden if a != 'expert')
    if layout.form == 'exchange':
        apply = partial(exchanged_apply, ffn, _exchange(ffn, mesh, weights, x, ids), weights)
        return _sum(experts.by_sorted_rows(apply, x, ids, gates, count)[0], elsewhere)
    if layout.form == 'local':
        return _sum(experts.dropless(ffn, weights, x, ids, gates)[0], elsewhere)
    x, ids, gates = (jax.lax.all_gather(a, 'expert', axis=0, tiled=True) for a in (x, ids, gates))
    here = experts.number_of(weights)
    if layout.split.by_expert:
        ids = ids - jax.lax.axis_index('expert') * here
        ids = jnp.where((ids >= 0) & (ids < here), ids, here)
    y, _ = experts.dropless(ffn, weights, x, ids, gates)
    y32 = _sum(y, elsewhere).astype(jnp.float32)
    return jax.lax.psum_scatter(y32, 'expert', scatter_dimension=0, tiled=True).astype(y.dtype)


def _exchange(
    ffn: Expert, mesh: AbstractMesh, weights: experts.Weights, x: jax.Array, ids: jax.Array
) -> Exchange:
    """The exchange of one device's choices ids [N, K], by the weights that it holds."""
    slots = forms.slots_of(mesh.shape, ids.size)
    choice = grouped.choose(ffn, weights, mesh.shape['expert'] * slots, x.dtype)
    return Exchange('expert', tuple(mesh.axis_names), slots, choice)


def _layout(
    mesh: AbstractMesh, weights: Params, adds_up: bool, topk: int, form: Form | None
) -> _Layout:
    """The layout of a layer; adds_up: whether its experts may be split by hidden units."""
    axes, devices = dict(mesh.shape), mesh.shape.get('expert', 1)
    if adds_up:
        specs = {name: sharding.fitted(axes, f'moe/experts/{name}', leaf.shape)[0]
                 for name, leaf in weights.items()}
        split = forms.split_of(axes, weights['down'].shape)
    else:
        divides = experts.number_of(weights) % devices == 0 and devices > 1
        specs = jax.tree.map(lambda leaf: P('expert') if divides else P(), weights)
        split = Split(divides)
    least = forms.form_of(axes, split, topk)
    possible = {least, *(('gather', 'exchange') if split.by_expert else ())}
    if form is not None and form not in possible:
        raise ValueError(f'form={form!r}: {experts.number_of(weights)} experts on the mesh {axes} '
                         f'are evaluated in the form {least!r}')
    return _Layout(specs, split, form or least)


def _whole_over_fsdp(weights: experts.Weights, specs: Specs) -> experts.Weights:
    """Gather what 'fsdp' splits; its transpose scatters the gradient."""
    def whole(leaf, spec):
        if 'fsdp' not in spec:
            return leaf
        return jax.lax.all_gather(leaf, 'fsdp', axis=spec.index('fsdp'), tiled=True)

    return jax.tree.map(whole, weights, specs)


def _bias_once(
    weights: experts.Weights, by_hidden: tuple[str, ...]
) -> experts.Weights:
    """Of the devices that each hold some hidden units, only the first adds the bias of the sum."""
    if not by_hidden or 'down_bias' not in weights:
        return weights
    first = sum(jax.lax.axis_index(a) for a in by_hidden) == 0
    return {**weights, 'down_bias': jnp.where(first, weights['down_bias'], 0)}


def _sum(y: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """y summed over axes of the mesh, in float32."""
    return jax.lax.psum(y.astype(jnp.float32), axes).astype(y.dtype) if axes else y
