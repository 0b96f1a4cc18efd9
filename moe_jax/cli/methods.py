"""`moe-jax methods`: what prunes, merges and sparsifies."""

from typing import Annotated

import tyro

from moe_jax.cli.shared import Positional


def methods(
    name: Positional[Annotated[str | None, tyro.conf.arg(metavar='[NAME]')]] = None,
    /,
    markdown: bool = False,
) -> None:
    """List the methods that prune, merge and sparsify: paper, kind, and what statistics each needs.

    Args:
        name: print what this method does instead, its options with defaults, and what it needs.
        markdown: print docs/methods.md instead of a table.
    """
    from rich.console import Console

    from prune.catalog import describe

    if name is not None:
        print(describe.section(name), end='')
    elif markdown:
        print(describe.markdown(), end='')
    else:
        Console().print(describe.table())
