"""Sparsify layer by layer: every layer is observed on what the sparse ones before it give."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from moe_jax.base.tree import Params
from moe_jax.calibration.stats import Stats
from moe_jax.config import Config
from prune.inputs.original import check_model, of_group
from prune.plans.plan import Plan
from prune.surgery.layerwise import Layerwise, layer_by_layer
from prune.weights.request import WeightRequest, weight_request
from prune.weights.sparsify import sparsify


def sparsify_layerwise(
    method: str,
    params: Params,
    cfg: Config,
    batches: Iterable[Mapping[str, Any]],
    *,
    tokenizer: str = '',
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Layerwise:
    """As `prune.sparsify`, but from the first layer to the last, each on the sparse ones before it.

    So a layer is pruned for the inputs it will have in the sparse model, as Wanda, SparseGPT and
    MoE-Pruner do, and one layer at a time is on the device. Returns the plan, the sparse model it
    makes (already made) and the statistics it was made from; `prune.apply` of the plan on the
    original gives that model again.

    batches as for `moe_jax.observe`, read once. options: those of `prune.sparsify`; its scope
    'global', which compares layers, is refused, and so are methods that read gradients or nothing.
    progress(done, layers) is called after each layer.
    """
    wanted = layerwise_weight_request(method, cfg, **options)
    check_model(cfg, params, None, 'prune.sparsify_layerwise')
    amount = ({'sparsity': wanted.sparsity} if wanted.pattern is None
              else {'pattern': wanted.pattern})
    common = {'scope': wanted.scope, 'leaves': wanted.leaves, 'group': wanted.call.group}

    def plan_one(i: int, one: Config, layer: Params, stats: Stats) -> Plan:
        return sparsify(method, stats, layer, one, **amount, **common, **wanted.call.options)

    return layer_by_layer(
        params, cfg, of_group(batches, wanted.call.group), plan_one, method=method,
        options=wanted.record() | {'layerwise': True}, observe=wanted.call.observe_options(),
        tokenizer=tokenizer, progress=progress)


def layerwise_weight_request(method: str, cfg: Config, **options: Any) -> WeightRequest:
    """The keywords of `sparsify_layerwise`, checked: ValueError for what it cannot do."""
    wanted = weight_request(method, cfg, **options)
    if wanted.scope == 'global':
        raise ValueError(f"scope='global' of {method!r} compares layers, and layer by layer fixes "
                         "beforehand what each loses; give scope='layer', 'matrix' or 'output'")
    wanted.call.check_layerwise('sparsify at once')
    if any(name.startswith('grad_') for name in wanted.call.needs):
        raise ValueError(f'{method!r} reads gradients, which need the whole model; use '
                         'moe_jax.observe with gradients=True, and prune.sparsify')
    return wanted
