"""What a router's design means for planning: what it has to read, and what may be deleted."""

from collections.abc import Mapping
from typing import Any

from moe_jax.base.tree import Params
from moe_jax.config import Config
from prune.inputs.request import Call
from prune.plans.layer import LayerPlan

COUNTS = frozenset(('count', 'count_top1', 'tokens', 'vocab'))  # statistics of how often alone


def router_leaves(moe: Params, what: str) -> Mapping[str, Any]:
    """The router's parameters; ValueError where its design has none, for `what` reads them."""
    if not (router := moe.get('router')):
        raise ValueError(f"{what}: reads the router's parameters, and the design of this one has "
                         'none; choose a method that reads usage, outputs or weights')
    return router


def check_usage(call: Call, cfg: Config) -> None:
    """Refuse, with ValueError, a method that ranks by counts where all counts are equal."""
    needs = set(call.needs)
    if cfg.traits.usage == 'mass' and needs and needs <= COUNTS:
        raise ValueError(
            f'{call.name!r} reads how often experts are chosen, and a router of design '
            f'{cfg.router.design!r} gives every expert the same number of tokens; choose a method '
            'that reads gates or outputs, such as reap')


def check_rows(name: str, layers: Mapping[int, LayerPlan], cfg: Config) -> None:
    """Refuse, with ValueError, plans that delete router rows which cannot be deleted."""
    if cfg.traits.sliceable:
        return
    for i, layer in layers.items():
        if layer.alias is None and layer.after < layer.before:
            raise ValueError(
                f'layer {i}: {name!r} deletes router rows, and in design {cfg.router.design!r} '
                "which row a token has depends on their number; use router_init='alias'")
