"""A plan made layer by layer and carried out as it goes: each layer is observed on the new ones
before it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from moe_jax.base.tree import Params, at
from moe_jax.calibration.layerwise import layerwise
from moe_jax.calibration.stats import Stats
from moe_jax.config import Config
from moe_jax.model.fingerprint import fingerprint
from prune.plans.layer import LayerPlan
from prune.plans.plan import Plan
from prune.surgery.apply import apply_layer, config_of

# plan_one(layer, cfg, params, stats): the plan of a model that is this one layer, called layer_0.
PlanOne = Callable[[int, Config, Mapping[str, Any], Stats], Plan]


class Layerwise(NamedTuple):
    """The plan, the smaller model it makes (already made), and the statistics it was made from."""

    plan: Plan
    params: Params
    cfg: Config
    stats: Stats


def layer_by_layer(
    params: Params,
    cfg: Config,
    batches: Iterable[Mapping[str, Any]],
    plan_one: PlanOne,
    *,
    method: str,
    options: Mapping[str, Any],
    observe: Mapping[str, Any],
    clamp: bool = False,
    targets: bool = False,
    tokenizer: str = '',
    progress: Callable[[int, int], None] | None = None,
) -> Layerwise:
    """Observe, plan and carry out every MoE layer, from the first to the last.

    method, options, clamp: what the whole plan records. observe: options of `moe_jax.observe` for
    each layer; targets, tokenizer, progress: of `moe_jax.calibration.layerwise`.
    """
    layers: dict[int, LayerPlan] = {}

    def compress(
        i: int, one: Config, layer: Params, stats: Stats
    ) -> tuple[dict[str, Any], Config]:
        part = plan_one(i, one, {'layer_0': layer}, stats)
        layers[i] = part.layers[0]
        return at(layer, 'moe', lambda moe: apply_layer(moe, layers[i], one, i)), config_of(
            part, one)

    new, _, stats = layerwise(cfg, dict(params), batches, compress, targets=targets,
                              progress=progress, tokenizer=tokenizer, **observe)
    whole = Plan(
        method=method, layers=layers, experts=cfg.experts, width=cfg.width,
        expert_hidden=cfg.expert_hidden, model=fingerprint(params, cfg), data=stats.data,
        clamp=clamp, options=dict(options),
    )
    return Layerwise(whole, new, config_of(whole, cfg).fit(new), stats)
