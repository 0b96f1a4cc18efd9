"""Which axis of which leaf lies on which axis of a mesh: a table, applied to any tree of ours.

Axes: 'data' for rows of a batch alone; 'fsdp' for rows, and to split what every device would else
hold whole; 'expert' for rows, and for experts; 'model' for hidden units, heads and vocabulary. A
mesh may lack any of them. Neither params nor configs know of meshes: a function whose params lie on
a mesh runs on that mesh (`on_mesh`), and inside it `current` says which it is.

Letters: B rows of a batch, E experts, F hidden units of an expert.
"""

import contextlib
import functools
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.core
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moe_jax.base.checks import integer
from moe_jax.base.tree import map_with_path

log = logging.getLogger('moe_jax')

AXES = ('data', 'fsdp', 'expert', 'model')
ROWS = ('data', 'fsdp', 'expert')  # the axes over which the rows of a batch are split
NO_MESH = Mesh(np.empty((), object), ())  # to leave the one that is set

# First match wins; letters as in config.py.
RULES: tuple[tuple[str, P], ...] = (
    (r'moe/experts/(gate|up)$', P('expert', 'fsdp', 'model')),
    (r'moe/experts/down$', P('expert', 'model', 'fsdp')),
    (r'moe/experts/(gate|up)_bias$', P('expert', 'model')),
    (r'moe/experts/down_bias$', P('expert', None)),
    (r'(embed/tokens|head/kernel)$', P(('model', 'fsdp'), None)),
    (r'attn/(q|k|v|q_up|kv_up)$', P('fsdp', 'model')),
    (r'attn/out$', P('model', 'fsdp')),
    (r'(mlp|shared)/(gate|up)$', P('fsdp', 'model')),
    (r'(mlp|shared)/down$', P('model', 'fsdp')),
    (r'.*', P()),
)


def make_mesh(**axes: int) -> Mesh:
    """A mesh with these axis sizes, e.g. make_mesh(data=2, expert=4), over the first devices.

    Raises ValueError for an axis that no rule knows, and for more devices than there are.
    """
    check_axes(axes)
    needed, devices = math.prod(axes.values()), jax.device_count()
    if needed > devices:
        raise ValueError(f'mesh {dict(axes)}: needs {needed} devices and there are {devices}; for '
                         f'a trial on CPU set XLA_FLAGS=--xla_force_host_platform_device_count='
                         f'{needed}')
    return jax.make_mesh(tuple(axes.values()), tuple(axes),
                         axis_types=(AxisType.Auto,) * len(axes), devices=jax.devices()[:needed])


def check_axes(axes: Mapping[str, int]) -> None:
    """Refuse, with ValueError, axes that no rule knows, and sizes that are none."""
    for name, size in axes.items():
        if name not in AXES:
            raise ValueError(f'mesh axis {name!r}: valid axes are {", ".join(AXES)}')
        integer(f'mesh axis {name}', size, 1)


def check_types(mesh: Mesh) -> None:
    """Refuse, with ValueError, a mesh of explicit axes, which `jax.make_mesh` gives by default."""
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(f'mesh {dict(mesh.shape)}: its axes are {mesh.axis_types}; make it with '
                         'sharding.make_mesh, or with axis_types=(AxisType.Auto, ...)')


def spec_of(path: str) -> P:
    """The rule of a leaf's path."""
    return next(spec for pattern, spec in RULES if re.search(pattern, path))


def fitted(axes: Mapping[str, int], path: str, shape: tuple[int, ...]) -> tuple[P, str]:
    """The spec of a leaf on a mesh of these axis sizes, and a note where it departs from the rule.

    An axis of the mesh that does not divide the leaf is left out there. Experts whose number does
    not divide over 'expert' are fitted: each is split by hidden units over 'expert' and 'model', so
    that no device holds more than its share; where F does not divide either, they are whole.
    """
    wanted, note = tuple(spec_of(path)), ''
    devices = axes.get('expert', 1)
    if 'moe/experts/' in path and shape[0] % devices:
        wanted = tuple({'expert': None, 'model': ('expert', 'model')}.get(a, a) for a in wanted)
        note = f'{shape[0]} experts do not divide over {devices} devices of axis \'expert\''
    parts = []
    for size, rule in zip(shape, wanted, strict=False):
        names = tuple(a for a in ((rule,) if isinstance(rule, str) else rule or ())
                      if axes.get(a, 1) > 1)
        kept = next(names[i:] for i in range(len(names) + 1)
                    if size % math.prod(axes[a] for a in names[i:]) == 0)
        if kept != names and not note:
            note = f'{size} does not divide over {math.prod(axes[a] for a in names)} devices of ' \
                   f'axis {names[0]!r}'
        parts.append(kept if len(kept) > 1 else kept[0] if kept else None)
    if note:
        split = [a for part in parts for a in ((part,) if isinstance(part, str) else part or ())]
        note += f': split over {" and ".join(split)} by its other axes' if split else ': kept whole'
    while parts and parts[-1] is None:  # as what comes out of jit says it, which is compared
        parts.pop()
    return P(*parts), note


def hidden_axes(axes: Mapping[str, int], shape: tuple[int, ...]) -> tuple[bool, tuple[str, ...]]:
    """Whether 'expert' splits E, and the axes that split F, by the shape [E, F, D] of `down`."""
    first, second, *_ = (*fitted(axes, 'moe/experts/down', shape)[0], None, None)
    hidden = (second,) if isinstance(second, str) else tuple(second or ())
    return first == 'expert', hidden


def placing(mesh: Mesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """The sharding of a leaf, by path and shape; each kind of leaf that had to be fitted is logged
    once."""
    check_types(mesh)
    said = set()

    def of(path: str, shape: tuple[int, ...]) -> NamedSharding:
        spec, note = fitted(mesh.shape, path, shape)
        kind = re.sub(r'^.*layer_\d+/', '', path)
        if note and (kind, note) not in said:
            said.add((kind, note))
            log.warning('%s: %s', path, note)
        return NamedSharding(mesh, spec)

    return of


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A tree of shardings for a tree of arrays or of `jax.ShapeDtypeStruct`."""
    of = placing(mesh)
    return map_with_path(lambda path, leaf: of(path, tuple(leaf.shape)), tree)


def place(tree: Any, mesh: Mesh) -> Any:
    """The same values laid out over a mesh by the rules."""
    return jax.device_put(tree, shardings(tree, mesh))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that a tree's leaves lie on; None where it is one device or none of ours.

    Raises ValueError where its axes are explicit (`check_types`).
    """
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
            continue
        mesh = getattr(leaf.sharding, 'mesh', None)
        if isinstance(mesh, Mesh) and mesh.size > 1:
            check_types(mesh)
            if set(mesh.axis_names) <= set(AXES):
                return mesh
    return None


@contextlib.contextmanager
def on_mesh(tree: Any) -> Iterator[Mesh | None]:
    """Run what is inside on the mesh that the tree's leaves lie on, if they lie on one.

    Leaves that were put on one device run there, whatever mesh is set. What a caller's own jit,
    grad or vmap traces runs on the mesh that the caller has set, if any.
    """
    mesh = mesh_of(tree)
    chosen = NO_MESH if mesh is None and _on_one_device(tree) else mesh
    try:
        context = contextlib.nullcontext() if chosen is None else jax.set_mesh(chosen)
    except ValueError:  # in a trace no mesh can be set
        mesh, context = None, contextlib.nullcontext()
    with context:
        yield mesh


def _on_one_device(tree: Any) -> bool:
    """Whether a leaf was put on one device, and the code runs where a mesh is set."""
    return not jax.sharding.get_abstract_mesh().empty and any(
        isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and leaf.committed
        and len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(tree))


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` of a function that runs on the mesh its arguments lie on."""
    compiled = jax.jit(function, **options)

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        with on_mesh((arguments, named)):
            return compiled(*arguments, **named)

    return run


def current() -> AbstractMesh | None:
    """The mesh that the code being traced runs on; None on one device, or inside a shard_map."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or AxisType.Manual in mesh.axis_types:
        return None
    return mesh if set(mesh.axis_names) <= set(AXES) else None


def row_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The axes of a mesh over which rows are split, in order."""
    return row_axes_of(mesh.shape)


def row_axes_of(axes: Mapping[str, int]) -> tuple[str, ...]:
    """As `row_axes`, of axis sizes alone."""
    return tuple(name for name in ROWS if axes.get(name, 1) > 1)


def row_parts(mesh: Mesh | AbstractMesh | None) -> int:
    """Into how many parts the rows of a batch are split."""
    return 1 if mesh is None else math.prod(mesh.shape[name] for name in row_axes(mesh))


def by_rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding of an array whose given axis is the rows of a batch."""
    return NamedSharding(mesh, P(*(None,) * axis, row_axes(mesh)))


def lay_out(tree: Any) -> Any:
    """Arrays told to the compiler to lie by the rules, where it runs on a mesh."""
    mesh = current()
    if mesh is None:
        return tree
    return map_with_path(lambda path, leaf: jax.lax.with_sharding_constraint(
        leaf, fitted(mesh.shape, path, leaf.shape)[0]), tree)


def replicate(tree: Any) -> Any:
    """Arrays told to the compiler to be whole on every device, so that any process can read them.
    """
    if current() is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, P()), tree)


def keep_rows(x: jax.Array) -> jax.Array:
    """x [B, ...] itself, told to the compiler to be split by rows where it runs on a mesh."""
    mesh = current()
    if mesh is None or not row_axes(mesh) or x.shape[0] % row_parts(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, P(row_axes(mesh)))


def replicated(leaf: Any) -> jax.sharding.Sharding:
    """Where small arrays go that belong to a leaf: every device of its mesh, or its one device."""
    sharding = getattr(leaf, 'sharding', None)
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding or first_device()


Placing = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]


def first_device() -> jax.sharding.Sharding:
    """The first device of the default backend, alone."""
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])
