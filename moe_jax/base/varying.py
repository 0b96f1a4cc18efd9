"""Arrays inside a caller's `jax.shard_map`: over which of its axes their values vary.

Its default checks hold what goes into a loop against what comes out, and a start of zeros varies
over nothing. Outside a shard_map nothing varies, and nothing is done here.
"""

from typing import Any

import jax

from moe_jax.base.tree import Tree


def axes_of(*trees: Any) -> frozenset[str]:
    """The axes over which some leaf of the trees varies."""
    return frozenset().union(*(_axes(leaf) for leaf in jax.tree.leaves(trees)))


def alike(tree: Tree, *trees: Any) -> Tree:
    """The same arrays, varying over whatever these or the leaves of the other trees vary over."""
    axes = axes_of(tree, trees)

    def cast(leaf: Any) -> Any:
        missing = axes - _axes(leaf)
        return jax.lax.pcast(leaf, tuple(sorted(missing)), to='varying') if missing else leaf

    return jax.tree.map(cast, tree) if axes else tree


def _axes(leaf: Any) -> frozenset[str]:
    # Of jax 0.10 and of what comes before it.
    kind = jax.typeof(leaf)
    manual = getattr(kind, 'manual_axis_type', None)
    return getattr(kind, 'vma', frozenset()) if manual is None else manual.varying
