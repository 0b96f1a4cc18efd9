"""The border of the package: names, options, budgets and statistics are checked here, then planned.

Letters: E experts of a layer, D model width.
"""

import inspect
import operator
import typing
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np

from moe_jax.checkpoint import check_params
from moe_jax.config import Config, nearest
from moe_jax.fingerprint import differs, fingerprint
from moe_jax.stats import Stats
from prune import budget
from prune.cluster import CENTER_NEEDS
from prune.methods import METHODS
from prune.plan import Plan, check_groups
from prune.routers import ROUTER_NEEDS

# Statistics that an option's value asks for, beside the method's own NEEDS.
OPTION_NEEDS = {'center': CENTER_NEEDS, 'router_init': ROUTER_NEEDS}
COUNTS = ('tokens', 'count', 'count_top1')


class MethodRow(NamedTuple):
    """A method: what it is called, where it is from, 'prune' or 'merge', and what it reads."""

    name: str
    paper: str
    kind: str
    needs: tuple[str, ...]


def methods() -> tuple[MethodRow, ...]:
    """One row per method, with the statistics it needs under its default options."""
    return tuple(
        MethodRow(name, m.PAPER, m.KIND, _needs(m, options(name))) for name, m in METHODS.items()
    )


def options(name: str) -> dict[str, Any]:
    """The options of a method and their defaults; ValueError for an unknown method."""
    keywords = inspect.signature(_method(name).plan, eval_str=True).parameters.values()
    return {p.name: p.default for p in keywords if p.kind is p.KEYWORD_ONLY}


def plan(
    name: str,
    stats: Stats | None,
    params: Mapping[str, Any],
    cfg: Config,
    *,
    experts: int | Sequence[int] | None = None,
    ratio: float | Sequence[float] | None = None,
    group: str | None = None,
    **method_options: Any,
) -> Plan:
    """Plan a smaller model with method `name`; weights are read at most, never changed.

    experts, ratio: `prune.budget.counts`. group: use only this group of the statistics (a task or
    domain). stats may be None for a method that needs none. Further options are the method's own:
    `prune.options(name)`.

    Raises ValueError, before any work, for an unknown method or option (with the nearest name), a
    budget out of range, statistics that are missing, not finite or of another model, a dense model,
    and a model whose router rows already share experts.
    """
    method = _method(name)
    chosen = check_options(name, method_options)
    counts = budget.counts(cfg, experts=experts, ratio=ratio)
    _check_model(cfg, params)
    if stats is not None and differs(stats.fingerprint, params, cfg):
        raise ValueError('these statistics were taken from another model (its routers differ); '
                         'observe this one')
    seen = _statistics(name, stats, cfg, group, _needs(method, chosen))
    layers = method.plan(seen, params, cfg, counts, **chosen)
    check_groups(name, layers, cfg.groups)
    return Plan(
        method=name,
        layers=layers,
        experts=cfg.experts,
        width=cfg.width,
        expert_hidden=cfg.expert_hidden,
        model=fingerprint(params, cfg),
        data='' if stats is None else stats.fingerprint,
        options=chosen | {'group': group},
    )


def _check_model(cfg: Config, params: Mapping[str, Any]) -> None:
    shared = [i for i in cfg.moe_layers if cfg.alias(i) is not None]
    if shared:
        raise ValueError(
            f'router rows of layers {shared} already share experts (an alias merge); plan from the '
            "model before that merge, or merge it with another router_init than 'alias'"
        )
    check_params(cfg, params, 'prune.plan')


def _method(name: str) -> ModuleType:
    if name not in METHODS:
        raise ValueError(f'no method {name!r}; {nearest(str(name), list(METHODS))}')
    return METHODS[name]


def check_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The method's options, given or default, each checked; ValueError with the nearest name."""
    chosen, hints = options(name), typing.get_type_hints(METHODS[name].plan)
    for key, value in given.items():
        if key not in chosen:
            known = nearest(key, list(chosen)) if chosen else 'it has none'
            raise ValueError(f'method {name!r} has no option {key!r}; {known}')
        chosen[key] = _typed(f'{name}: {key}', value, hints[key])
    return chosen


def _typed(where: str, value: Any, hint: Any) -> Any:
    if typing.get_origin(hint) is Literal:
        valid = typing.get_args(hint)
        if value not in valid:
            raise ValueError(f'{where}={value!r}; {nearest(str(value), valid)}')
        return value
    if hint is bool and not isinstance(value, bool):
        raise ValueError(f'{where}={value!r}: must be True or False')
    if hint is int:
        if isinstance(value, bool) or not hasattr(value, '__index__') or not 0 <= value < 2**32:
            raise ValueError(f'{where}={value!r}: must be an integer from 0 to 2**32 - 1')
        return operator.index(value)
    return value


def _needs(method: ModuleType, chosen: Mapping[str, Any]) -> tuple[str, ...]:
    extra = [n for key, table in OPTION_NEEDS.items() if key in chosen for n in table[chosen[key]]]
    return tuple(dict.fromkeys((*method.NEEDS, *extra)))


def _statistics(
    name: str, stats: Stats | None, cfg: Config, group: str | None, needs: Sequence[str]
) -> dict[int, dict[str, np.ndarray]]:
    """The needed statistics of every MoE layer as checked arrays, floats in float64."""
    if not needs:
        return {}
    if stats is None:
        raise ValueError(f'method {name!r} needs the statistics {list(needs)}; see moe_jax.observe')
    if group is not None and group not in stats.groups:
        known = nearest(str(group), list(stats.groups))
        raise ValueError(f'group {group!r} is not in the statistics; {known}')
    if not stats.groups:
        raise ValueError('the statistics are empty; observe some batches first')
    found = {}
    for label, layers in stats.groups.items():
        if tuple(sorted(layers)) != cfg.moe_layers:
            raise ValueError(
                f'statistics of group {label!r} have layers {sorted(layers)}, the model has MoE '
                f'layers {list(cfg.moe_layers)}; observe this model'
            )
    for i in cfg.moe_layers:
        layer = stats.layer(i, group)
        found[i] = {n: _statistic(name, cfg, i, n, layer.get(n)) for n in needs}
        if 'tokens' in layer and not layer['tokens'] > 0:
            raise ValueError(f'statistics of layer {i} saw no token; observe some batches first')
    return found


def _statistic(method: str, cfg: Config, layer: int, name: str, value: Any) -> np.ndarray:
    if value is None:
        raise ValueError(
            f'method {method!r} needs the statistic {name!r}, which layer {layer} lacks; '
            'observe again'
        )
    rows = cfg.experts[layer]
    shapes = {'tokens': (), 'logit_gram': (rows, rows), 'input_sum': (cfg.width,)}
    value, shape = np.asarray(value), shapes.get(name, (rows,))
    if value.shape != shape:
        raise ValueError(
            f'statistic {name!r} of layer {layer} has shape {value.shape}, this model asks for '
            f'{shape}; observe this model'
        )
    if not np.isfinite(value).all() or (name in COUNTS and (value < 0).any()):
        raise ValueError(
            f'statistic {name!r} of layer {layer} has values that are not finite, or negative '
            'counts; look for NaN in the model or the data, and observe again'
        )
    return value if name in COUNTS else value.astype(np.float64)
