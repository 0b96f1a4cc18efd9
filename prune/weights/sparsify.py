"""Plan which weights inside the experts become zero; experts and routers stay.

E experts, D model width, F expert hidden width. Kernels are [in, out] (y = x W), gate and up [D, F]
and down [F, D], so that an output is a column. On the host; one matrix of one layer's experts at a
time is held beside the masks, for scope 'layer' the scores of one layer.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, cast

import numpy as np

from moe_jax.base.tree import Params
from moe_jax.calibration.stats import Stats
from moe_jax.config import Config
from moe_jax.model.fingerprint import fingerprint
from prune.inputs.method import Scope
from prune.inputs.original import check_model
from prune.plans.layer import LayerPlan
from prune.plans.masks import pack
from prune.plans.plan import Plan
from prune.weights.cut import pooled
from prune.weights.request import WeightRequest, weight_request
from prune.weights.stack import MIN_TOKENS
from prune.weights.zeros import Pattern

Arrays = dict[str, np.ndarray]


def sparsify(
    method: str,
    stats: Stats | None,
    params: Params,
    cfg: Config,
    *,
    sparsity: float | None = None,
    scope: Scope | None = None,
    pattern: Pattern | None = None,
    leaves: Collection[str] | None = None,
    group: str | None = None,
    **method_options: Any,
) -> Plan:
    """Plan zeros in the matrices of the routed experts; `prune.apply` carries it out.

    sparsity: the share of weights that become zero, in [0, 1) (default 0.5).
    scope: within what scores are compared, and floor(sparsity * size) of the lowest go: every
      'output' of a matrix, every expert's 'matrix', all chosen matrices of a 'layer', or of the
      whole model ('global') (default: the method's own). Scores are compared as they are. Among
      equal scores the lower index goes first, in the order input, output, expert, leaf, layer.
    pattern: (n, m): of every m consecutive inputs of an output, n stay; instead of sparsity and
      scope.
    leaves: some of 'gate', 'up', 'down' (default: all that the experts have). Shared experts and
      biases are left alone.
    group: use only this group of the statistics (a task, domain or language).
    stats may be None for a method that needs none. Further options are the method's own:
    `prune.weight_options(method)`. Models whose router rows share experts are fine, but for methods
    that read gradients: the statistics of such rows are summed.

    Raises ValueError, before any work, for an unknown method or option (with the nearest name), a
    share or pattern that cannot be, statistics that are missing, not finite or of another model,
    and a dense model.
    """
    wanted = weight_request(method, cfg, sparsity=sparsity, scope=scope, pattern=pattern,
                           leaves=leaves, group=group, **method_options)
    check_model(cfg, params, stats, 'prune.sparsify')
    wanted.check_statistics(stats, cfg)
    decide = _solved if wanted.call.method.form == 'solve' else _SCOPES[wanted.scope]
    layers = decide(wanted, stats, params, cfg)
    return Plan(
        method=method, layers=layers, experts=cfg.experts, width=cfg.width,
        expert_hidden=cfg.expert_hidden, model=fingerprint(params, cfg),
        data='' if stats is None else stats.data, options=wanted.record(),
    )


def _within(
    asked: WeightRequest, stats: Stats | None, params: Params, cfg: Config
) -> dict[int, LayerPlan]:
    """Every matrix by itself."""
    return {i: _layer(asked, stats, cfg, i, {
        stack.leaf: pack(asked.cut(asked.scores(stack)))
        for stack in asked.stacks(stats, params, cfg, i)}) for i in cfg.moe_layers}


def _by_layer(
    asked: WeightRequest, stats: Stats | None, params: Params, cfg: Config
) -> dict[int, LayerPlan]:
    """All matrices of a layer together."""
    plans = {}
    for i in cfg.moe_layers:
        parts = [(s.leaf, asked.scores(s)) for s in asked.stacks(stats, params, cfg, i)]
        masks = cast(Arrays, pooled(lambda parts=parts: parts, asked.sparsity))  # by leaf
        plans[i] = _layer(asked, stats, cfg, i, masks)
    return plans


def _globally(
    asked: WeightRequest, stats: Stats | None, params: Params, cfg: Config
) -> dict[int, LayerPlan]:
    """All matrices of the model together; scores are made anew for each pass over them."""
    def parts() -> Iterable[tuple[tuple[int, str], np.ndarray]]:
        return (((i, s.leaf), asked.scores(s)) for i in cfg.moe_layers
                for s in asked.stacks(stats, params, cfg, i))

    masks = pooled(parts, asked.sparsity)
    return {i: _layer(asked, stats, cfg, i, {leaf: masks[i, leaf] for leaf in asked.leaves})
            for i in cfg.moe_layers}


_SCOPES = {'output': _within, 'matrix': _within, 'layer': _by_layer, 'global': _globally}


def _solved(
    asked: WeightRequest, stats: Stats | None, params: Params, cfg: Config
) -> dict[int, LayerPlan]:
    """Masks, and new values of the weights that stay."""
    plans = {}
    solve = asked.call.method.solve
    assert solve is not None  # the form of the method
    for i in cfg.moe_layers:
        masks, weights, notes = {}, {}, {}
        for stack in asked.stacks(stats, params, cfg, i):
            mask, updated, fallback = solve(
                stack, asked.sparsity, asked.pattern, **asked.call.options)
            if not np.isfinite(updated).all():
                raise ValueError(f'new weights of layer {i}, {stack.leaf}, are not finite; look '
                                 'for NaN in the model, or raise the damping')
            masks[stack.leaf], weights[stack.leaf] = pack(mask), updated
            if len(fallback):
                notes[f'fallback_{stack.leaf}'] = fallback
        plans[i] = _layer(asked, stats, cfg, i, masks, weights, notes)
    return plans


def _layer(asked: WeightRequest, stats: Stats | None, cfg: Config, index: int, masks: Arrays,
           weights: Arrays | None = None, notes: Mapping[str, Any] | None = None) -> LayerPlan:
    notes = dict(notes or {})
    if asked.call.needs:
        assert stats is not None  # the method reads them
        tokens = asked.traffic(stats, cfg, index)
        least = asked.call.options.get('min_tokens', MIN_TOKENS)
        notes |= {'evaluated': tokens.astype(np.int64),
                  'zero_traffic': np.flatnonzero(tokens == 0),
                  'few_tokens': np.flatnonzero((tokens > 0) & (tokens < least))}
    return LayerPlan(mix=np.eye(cfg.experts[index]), masks=masks, weights=weights or {},
                     notes=notes)
