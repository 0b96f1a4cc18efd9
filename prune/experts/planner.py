"""The border of the package: what is asked is checked (`prune.experts.request`), then planned.

Letters: E experts of a layer, G kept.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe_jax.base.tree import Params
from moe_jax.calibration.stats import Stats
from moe_jax.config import Config
from moe_jax.model.fingerprint import fingerprint
from prune.budget import budget
from prune.budget.amounts import Spread
from prune.experts.common import Common, FirstLayer, Gates, Protect
from prune.experts.keep import GROW, drop, keep
from prune.experts.protect import super_experts
from prune.experts.request import Request, request
from prune.inputs.method import Replace
from prune.inputs.original import check_original
from prune.inputs.router import check_rows, check_usage
from prune.inputs.statistics import Layers, LayerStats
from prune.plans.checks import check_groups
from prune.plans.layer import LayerPlan
from prune.plans.plan import Plan
from prune.subsets.top import top


def plan(
    name: str,
    stats: Stats | None,
    params: Params,
    cfg: Config,
    *,
    experts: int | Sequence[int] | None = None,
    ratio: float | Sequence[float] | None = None,
    mass: float | None = None,
    parameters: int | None = None,
    memory: int | None = None,
    spread: Spread | None = None,
    floor: int | None = None,
    clamp: bool = False,
    gates: Gates = 'slice',
    replace: Replace | None = None,
    protect: Protect = 'none',
    first_layer: FirstLayer = 'same',
    group: str | None = None,
    **method_options: Any,
) -> Plan:
    """Plan a smaller model with method `name`; weights are read at most, never changed.

    experts, ratio, mass, parameters, memory: how much stays, exactly one of them; spread, floor,
      clamp: how it is spread over layers (`prune.budget`).
    gates: 'slice' deletes the router rows of dropped experts, 'preserve_mass' keeps them in the
      softmax (`prune.experts.keep`). replace: 'mean' puts the mean output in place of a dropped
      expert (default: the method's own).
    protect: 'super' never drops super experts (`prune.experts.protect`).
    first_layer: 'topk' keeps the most used experts of the first MoE layer instead of asking the
      method (suggested by UNCURL), 'keep' all of them.
    group: use only this group of the statistics (a task, domain or language).
    stats may be None for a method that needs none. Further options are the method's own:
    `prune.options(name)`.

    Raises ValueError, before any work, for an unknown method or option (with the nearest name), a
    budget out of range, statistics that are missing, not finite or of another model, a dense model,
    and a model whose router rows already share experts.
    """
    wanted = request(
        name, cfg, experts=experts, ratio=ratio, mass=mass, parameters=parameters, memory=memory,
        spread=spread, floor=floor, clamp=clamp, gates=gates, replace=replace, protect=protect,
        first_layer=first_layer, group=group, **method_options)
    made = planned(wanted, stats, params, cfg, clamp=clamp)
    warn_of_growth(made)
    return made


def planned(wanted: Request, stats: Stats | None, params: Params, cfg: Config, *, clamp: bool
            ) -> Plan:
    """The plan of a request that is checked already; errors of models and statistics as `plan`."""
    name, first_layer = wanted.call.method.name, wanted.common.first_layer
    check_original(cfg, params, stats)
    check_usage(wanted.call, cfg)
    own, common = wanted.statistics(stats, cfg)
    layers = DECIDE[wanted.call.method.form](wanted, own, common, params, cfg)
    if first_layer == 'topk':
        i = min(layers)
        layers[i] = _top_of_first(common[i], cfg, i, layers[i].after)
    check_groups(name, layers, cfg.groups)
    check_rows(name, layers, cfg)
    return Plan(
        method=name, layers=layers, experts=cfg.experts, width=cfg.width,
        expert_hidden=cfg.expert_hidden, model=fingerprint(params, cfg),
        data='' if stats is None else stats.data, clamp=clamp, options=wanted.record(),
    )


def warn_of_growth(made: Plan) -> None:
    """Say, once for a plan, that the gates of its experts are not those of the model."""
    grown = {i: note for i, layer in made.layers.items()
             if (note := str(layer.notes.get('gates', ''))).startswith(GROW)}
    if grown:
        first, note = min(grown.items())
        warnings.warn(
            f'plan {made.method!r}: without the router rows of dropped experts, {note} (layer '
            f"{first}, {len(grown)} layers in all); gates='preserve_mass' keeps the gates as they "
            'were', stacklevel=3)


def _by_scores(
    asked: Request, own: Layers | Mapping[str, Layers], common: Layers, params: Params, cfg: Config
) -> dict[int, LayerPlan]:
    """Keep the best by the method's scores, protected experts first."""
    ranked_by = asked.call.method.scores
    assert ranked_by is not None  # the form of the method
    scores = ranked_by(own, params, cfg, **asked.call.options)
    for i, values in scores.items():
        if not np.isfinite(values).all():
            raise ValueError(f'scores of layer {i} are not finite; look for NaN in the model')
    safe = _protected(common, cfg, asked.common.protect)
    counts = budget.spent(cfg, params, asked.budget, scores, safe, common)
    plans = {}
    for i, count in counts.items():
        order = np.where(safe[i], np.inf, scores[i])
        ids = top(order, count, cfg.groups)
        plans[i] = _drop(ids, common, cfg, i, asked.common, _ranking_notes(scores[i], ids))
    return plans


def _by_choice(
    asked: Request, own: Layers, common: Layers, params: Params, cfg: Config
) -> dict[int, LayerPlan]:
    """Keep what the method's search found; protected experts take the place of the least used."""
    counts = budget.plain(cfg, params, asked.budget)
    safe = _protected(common, cfg, asked.common.protect)
    search = asked.call.method.choose
    assert search is not None  # the form of the method
    chosen = search(own, params, cfg, counts, **asked.call.options)
    plans = {}
    for i, ids in chosen.items():
        if safe[i].any():
            used = common[i].get('count_top1', np.zeros(len(safe[i])))
            member = np.isin(np.arange(len(used)), ids)
            rank = np.where(safe[i], np.inf, np.where(member, used + 1.0, 0.0))
            ids = top(rank, counts[i], cfg.groups)
        plans[i] = _drop(ids, common, cfg, i, asked.common, {})
    return plans


def _by_plan(
    asked: Request, own: Layers, common: Layers, params: Params, cfg: Config
) -> dict[int, LayerPlan]:
    """What the method merges."""
    counts = budget.plain(cfg, params, asked.budget)
    merge = asked.call.method.plan
    assert merge is not None  # the form of the method
    return merge(own, params, cfg, counts, **asked.call.options)


def _drop(
    ids: np.ndarray, common: Layers, cfg: Config, layer: int, options: Common,
    notes: Mapping[str, Any],
) -> LayerPlan:
    """The plan that keeps the experts `ids` [G], with notes on their traffic."""
    stats = common.get(layer, {})
    assert options.replace is not None  # the method's own by now
    return drop(ids, stats, cfg, layer, gates=options.gates, replace=options.replace,
                notes={**_traffic_notes(stats), **notes})


def _ranking_notes(scores: np.ndarray, ids: np.ndarray) -> dict[str, Any]:
    """Scores [E], and how far the worst kept expert is above the best dropped one."""
    if len(ids) == len(scores):
        return {'scores': scores}
    return {'scores': scores,
            'margin': float(scores[ids].min() - np.delete(scores, ids).max())}


def _traffic_notes(stats: LayerStats) -> dict[str, Any]:
    """First choices of every expert [E], and which experts had none."""
    if 'count_top1' not in stats:
        return {}
    return {'count': stats['count_top1'],
            'zero_traffic': np.flatnonzero(stats['count_top1'] == 0)}


def _protected(common: Layers, cfg: Config, protect: Protect) -> dict[int, np.ndarray]:
    """Which experts of each layer may not go, {layer: bool [E]}."""
    if protect == 'super':
        return super_experts({i: common[i] for i in cfg.moe_layers})
    return {i: np.zeros(cfg.experts[i], bool) for i in cfg.moe_layers}


# What makes a method's answer a plan, by its form.
DECIDE = {'scores': _by_scores, 'choose': _by_choice, 'plan': _by_plan}


def _top_of_first(stats: LayerStats, cfg: Config, layer: int, count: int) -> LayerPlan:
    """Keep the most used experts of the first MoE layer."""
    used = stats['count_top1']
    return keep(top(used, count, cfg.groups), len(used), _traffic_notes(stats))
