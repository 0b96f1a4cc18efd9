"""Which axis of which leaf lies on which axis of a mesh: a table, applied to any tree of ours.

Axes: 'data' for rows of a batch, 'expert' for experts, 'model' for channels and vocabulary. An axis
that the mesh lacks, or that does not divide the leaf, is left out and the leaf is whole there.
"""

import logging
import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from moe_jax.tree import map_with_path

log = logging.getLogger('moe_jax')

# First match wins; letters as in config.py.
RULES: tuple[tuple[str, P], ...] = (
    (r'moe/experts/(gate|up)$', P('expert', None, 'model')),
    (r'moe/experts/down$', P('expert', 'model', None)),
    (r'moe/experts/(gate|up)_bias$', P('expert', 'model')),
    (r'moe/experts/down_bias$', P('expert', None)),
    (r'(embed/tokens|head/kernel)$', P('model', None)),
    (r'attn/(q|k|v|q_up|kv_up)$', P(None, 'model')),
    (r'attn/out$', P('model', None)),
    (r'(mlp|shared)/(gate|up)$', P(None, 'model')),
    (r'(mlp|shared)/down$', P('model', None)),
    (r'.*', P()),
)


def make_mesh(**axes: int) -> Mesh:
    """A mesh with these axis sizes, e.g. make_mesh(data=2, expert=4), over the first devices."""
    return jax.make_mesh(tuple(axes.values()), tuple(axes),
                         axis_types=(AxisType.Auto,) * len(axes))


def spec_of(path: str) -> P:
    """The rule of a leaf's path."""
    return next(spec for pattern, spec in RULES if re.search(pattern, path))


def sharding_of(mesh: Mesh, path: str, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of one leaf, without the axes that the mesh lacks or that do not divide it."""
    fitted: list[Any] = []
    for size, axis in zip(shape, spec_of(path), strict=False):
        devices = mesh.shape.get(axis, 1) if axis is not None else 1
        if devices > 1 and size % devices:
            log.warning('%s: %d does not divide over %d devices of axis %r; kept whole', path, size,
                        devices, axis)
        fitted.append(axis if devices > 1 and size % devices == 0 else None)
    return NamedSharding(mesh, P(*fitted))


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A tree of shardings for a tree of arrays or of `jax.ShapeDtypeStruct`."""
    return map_with_path(lambda path, leaf: sharding_of(mesh, path, tuple(leaf.shape)), tree)
