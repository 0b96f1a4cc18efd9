"""The experts of a layer over the devices of a mesh: one `shard_map`, equal to `experts.dropless`.

N tokens, D width, E experts, F hidden units, K choices per token, n devices of the axis 'expert'.
Tokens are split over the row axes of the mesh, experts as `sharding.fitted` says. Forms:

    exchange  each choice travels to the device of its expert and back (`exchange`): 2 N K D numbers
              in all, forward
    gather    each device of the axis sees the tokens of all n, evaluates what it holds of the
              experts, and the parts are summed: 2 n N D numbers in all; cheaper where K >= n, and
              the only one where experts are split by hidden units
    local     each device holds all experts, and nothing travels over the axis

The axis 'model' splits the hidden units in any form, and the parts are summed over it.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from moe_jax.base import sharding
from moe_jax.experts import evaluate as experts
from moe_jax.experts.exchange import Exchange, exchanged_apply
from moe_jax.experts.grouped import Expert
from moe_jax.layers.ffn import Ffn

SLACK = 1.25  # slots of an exchange over what two devices send each other on average


class _Layout(NamedTuple):
    """How a layer's experts lie: specs of the weights, whether 'expert' splits E, the axes that
    split F, and the form."""

    specs: Any
    by_expert: bool
    by_hidden: tuple[str, ...]
    form: str


def evaluate(
    ffn: Expert,
    weights: experts.Weights,
    x: jax.Array,
    ids: jax.Array,
    gates: jax.Array,
    *,
    form: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """As `experts.dropless`, on the mesh at hand (`sharding.current`), or on the one device.

    Where ffn is not an `Ffn`, whose hidden units add up, each expert is kept whole. form: one of
    the module's, by default the one that sends least; ValueError where experts do not lie so.
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


def _on_device(ffn, mesh, layout, count, weights, x, ids, gates):
    """One device's part: its tokens in, their outputs back."""
    weights = _whole_over_fsdp(weights, layout.specs)
    weights = _bias_once(weights, layout.by_hidden)
    elsewhere = tuple(a for a in layout.by_hidden if a != 'expert')
    if layout.form == 'exchange':
        how = Exchange('expert', tuple(mesh.axis_names), _slots(ids, mesh))
        apply = lambda f, w, rows, sizes: exchanged_apply(f, how, w, rows, sizes)  # noqa: E731
        y, _ = experts.dropless(ffn, weights, x, ids, gates, count=count, apply=apply)
        return _sum(y, elsewhere)
    if layout.form == 'local':
        return _sum(experts.dropless(ffn, weights, x, ids, gates)[0], elsewhere)
    x, ids, gates = (jax.lax.all_gather(a, 'expert', axis=0, tiled=True) for a in (x, ids, gates))
    here = experts.number_of(weights)
    if layout.by_expert:
        ids = ids - jax.lax.axis_index('expert') * here
        ids = jnp.where((ids >= 0) & (ids < here), ids, here)
    y, _ = experts.dropless(ffn, weights, x, ids, gates)
    y32 = _sum(y, elsewhere).astype(jnp.float32)
    return jax.lax.psum_scatter(y32, 'expert', scatter_dimension=0, tiled=True).astype(y.dtype)


def _layout(mesh: AbstractMesh, weights: Mapping[str, Any], adds_up: bool, topk: int,
            form: str | None) -> _Layout:
    axes, devices = dict(mesh.shape), mesh.shape.get('expert', 1)
    if adds_up:
        specs = {name: sharding.fitted(axes, f'moe/experts/{name}', leaf.shape)[0]
                 for name, leaf in weights.items()}
        by_expert, by_hidden = sharding.hidden_axes(axes, weights['down'].shape)
    else:
        divides = experts.number_of(weights) % devices == 0 and devices > 1
        specs = jax.tree.map(lambda leaf: P('expert') if divides else P(), weights)
        by_expert, by_hidden = divides, ()
    if not (by_expert or 'expert' in by_hidden):
        found = 'local'
    elif not by_expert or topk >= devices:
        found = 'gather'
    else:
        found = 'exchange'
    if (form == 'gather' and found == 'exchange') or (form == 'exchange' and by_expert):
        found = form
    elif form not in (None, found):
        raise ValueError(f'form={form!r}: {experts.number_of(weights)} experts on the mesh {axes} '
                         f'are evaluated in the form {found!r}')
    return _Layout(specs, by_expert, by_hidden, found)


def _slots(ids: jax.Array, mesh: AbstractMesh) -> int:
    """C, a multiple of 8: SLACK times what two devices exchange on average, at most all rows."""
    most = math.prod(ids.shape)
    return min(most, -(-math.ceil(SLACK * most / mesh.shape['expert']) // 8) * 8)


def _whole_over_fsdp(weights: Any, specs: Any) -> Any:
    """Gather what 'fsdp' splits; its transpose scatters the gradient."""
    def whole(leaf, spec):
        if 'fsdp' not in spec:
            return leaf
        return jax.lax.all_gather(leaf, 'fsdp', axis=spec.index('fsdp'), tiled=True)

    return jax.tree.map(whole, weights, specs)


def _bias_once(weights: Any, by_hidden: tuple[str, ...]) -> Any:
    """Of the devices that each hold some hidden units, only the first adds the bias of the sum."""
    if not by_hidden or 'down_bias' not in weights:
        return weights
    first = sum(jax.lax.axis_index(a) for a in by_hidden) == 0
    return weights | {'down_bias': jnp.where(first, weights['down_bias'], 0)}


def _sum(y: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return jax.lax.psum(y.astype(jnp.float32), axes).astype(y.dtype) if axes else y
