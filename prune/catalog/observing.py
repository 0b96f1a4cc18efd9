"""What to observe for methods of both kinds: those for experts, and those for weights inside."""

from typing import Any

from prune.experts import registry
from prune.weights.methods import WEIGHT_METHODS
from prune.weights.registry import weight_observe_options


def observe_options(*names: str, reservoir: int = 8192, **method_options: Any) -> dict[str, Any]:
    """What to pass to `moe_jax.observe` so that its statistics serve all these methods.

    names: of `prune.methods()` and `prune.weight_methods()`. method_options: those of the one
    method named, where its needs depend on them. reservoir: how many tokens to sample, where one of
    the methods needs a sample.
    """
    chosen = method_options if len(names) == 1 else {}
    found: dict[str, Any] = {}
    for name in names:
        found |= (weight_observe_options(name, **chosen) if name in WEIGHT_METHODS
                  else registry.observe_options(name, reservoir=reservoir, **chosen))
    return found
