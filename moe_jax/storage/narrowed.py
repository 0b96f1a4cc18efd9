"""A native model's leaves in a narrower dtype, one after the other: orbax casts without a look."""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from moe_jax.base.narrowing import Casts, narrows
from moe_jax.base.tree import Params, leaves_with_paths


def any_narrows(stored: Params, wanted: Params) -> bool:
    """Whether a leaf is wanted in a dtype that holds less than the one it is stored in."""
    kinds = {path: leaf.dtype for path, leaf in leaves_with_paths(wanted)}
    return any(narrows(leaf.dtype, kinds[path]) for path, leaf in leaves_with_paths(stored))


def restore(path: Path, folder: Path, stored: Params, wanted: Params) -> Params:
    """The arrays in `folder` as `wanted`, trees of shape, dtype and sharding; `path` for messages.

    Each is read as stored and cast by itself, so that what the cast loses is seen: peak memory is
    the model plus one leaf. Raises ValueError where a finite number would become infinite.
    """
    casts, params = Casts(path), {}
    kinds = {path: leaf.dtype for path, leaf in leaves_with_paths(stored)}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        for name, leaf in leaves_with_paths(wanted):
            whole = _nested(name, leaf.update(dtype=kinds[name]))
            tree = reader.restore(folder, args=ocp.args.PyTreeRestore(
                item=whole, restore_args=ocp.checkpoint_utils.construct_restore_args(whole),
                partial_restore=True))
            (_, array), = leaves_with_paths(tree)
            _merge(params, _nested(name, casts.cast(name, array, leaf.dtype)))
    casts.tell()
    return params


def _nested(path: str, leaf: Any) -> dict[str, Any]:
    """The tree with one leaf, at a path."""
    for key in reversed(path.split('/')):
        leaf = {key: leaf}
    return leaf


def _merge(tree: dict[str, Any], other: dict[str, Any]) -> None:
    """Add a tree's leaves to another's."""
    for key, value in other.items():
        if isinstance(value, dict):
            _merge(tree.setdefault(key, {}), value)
        else:
            tree[key] = value
