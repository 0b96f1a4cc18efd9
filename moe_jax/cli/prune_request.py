"""What `moe-jax prune` was asked for."""

from typing import Any, NamedTuple


class Request(NamedTuple):
    """What was asked for, as keywords of `prune.plan`.

    amounts: the budget, as far as it was given. common: gates, replace, protect, first_layer and
    group. own: all options of the method. text: with --layerwise, what to read; else None.
    """

    method: str
    amounts: dict[str, Any]
    common: dict[str, Any]
    own: dict[str, Any]
    text: dict[str, Any] | None
