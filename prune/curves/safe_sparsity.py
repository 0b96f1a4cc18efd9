"""Shrink a model with several methods to several budgets, and measure every result.

Letters: E experts of a layer.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from moe_jax.base.checks import choice, number
from moe_jax.base.tree import Params, count_params
from moe_jax.calibration.stats import Stats
from moe_jax.config import Config
from moe_jax.evals.quality import Reference
from moe_jax.model.fingerprint import fingerprint
from prune.budget import budget
from prune.curves.safety import UNITS, Metric, Point, Safety, measured
from prune.experts.planner import plan
from prune.experts.request import request
from prune.inputs.original import check_original
from prune.surgery.apply import apply

TOLERANCE = 0.05  # 0.05 nats are 5% of perplexity; of rejected tokens one in twenty
SHARES = (7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4, 1 / 8)
Own = tuple[str, Mapping[str, Any]]  # a method and its options
Named = Mapping[str, Own]


def safe_sparsity(
    methods: str | Iterable[str] | Named,
    stats: Stats | None,
    params: Params,
    cfg: Config,
    batches: Iterable[Mapping[str, Any]],
    *,
    experts: Sequence[int | Sequence[int]] | None = None,
    metric: Metric = 'lost',
    tolerance: float = TOLERANCE,
    group: str | None = None,
    known: Mapping[str, Point] | None = None,
    on_point: Callable[[Point, int, int], None] | None = None,
    **options: Any,
) -> Safety:
    """Shrink with each method to each budget, and hold every result against the original.

    methods: names, or {label: (name, its options)}. batches: as for `moe_jax.compare`; other text
      than `stats` were taken from, at least two rows. experts: the budgets, each as for
      `prune.plan` (default: from 7/8 to 1/8 of every layer's experts, topk at least).
    metric: 'lost' nats of the true next token, 'kl', or 'rejected' = 1 - acceptance; tolerance in
      its unit. group: of the statistics. options: gates, replace, protect and their
      like of `prune.plan`, for all methods.
    known, on_point: points by id that need no computing again, and what is called with every new
      point, its number and how many there are, so that a stopped curve goes on.

    Names, options, budgets and statistics are checked before anything runs.
    """
    named = _named(methods)
    budgets = _budgets(cfg, experts, options)
    _check(named, budgets, stats, params, cfg, metric, tolerance, {'group': group} | options)
    reference = Reference.of(cfg, dict(params), batches)
    if sum(int((rows[2].sum(axis=1) > 0).sum()) for _, rows in reference.rows) < 2:
        raise ValueError('safe_sparsity: one row has no interval; give at least two rows of text')
    source = _source(reference, stats, group, options)
    whole, points, known = count_params(params), [], dict(known or {})
    shared: dict[str, Any] = {'group': group, **options}
    jobs = [(label, counts) for label in named for counts in budgets]
    for n, (label, counts) in enumerate(jobs, 1):
        name, own = named[label]
        key = _digest([label, name, dict(own), counts, source])
        if key not in known:
            made = plan(name, stats, params, cfg, experts=counts,
                        **{**shared, **own})
            small, small_cfg = apply(params, cfg, made)
            left = [layer.after for _, layer in sorted(made.layers.items())]
            known[key] = {'id': key, 'method': label, 'experts': left,
                          'kept': sum(left) / len(left),
                          'parameters': count_params(small) / whole,
                          **measured(reference.compare(small_cfg, small))}
            if on_point is not None:
                on_point(known[key], n, len(jobs))
        points.append(known[key])
    return Safety(tuple(points), metric, float(tolerance))


def _named(methods: str | Iterable[str] | Named) -> dict[str, Own]:
    """{label: (method, its options)}; a name alone stands for itself."""
    if isinstance(methods, Mapping):
        return {label: (given, {}) if isinstance(given, str) else cast(Own, tuple(given))
                for label, given in methods.items()}
    return {name: (name, {}) for name in ([methods] if isinstance(methods, str) else methods)}


def _budgets(cfg: Config, experts: Sequence[int | Sequence[int]] | None,
             options: Mapping[str, Any]) -> list[tuple[int, ...]]:
    """Experts of every MoE layer by budget, from the most to the fewest."""
    floors = {key: options[key] for key in ('floor', 'clamp') if key in options}
    least = budget.lowest(cfg, budget.Budget(experts=1, **floors))
    if experts is None:
        budgets = [tuple(max(least, round(share * cfg.experts[i] / cfg.groups) * cfg.groups)
                       for i in cfg.moe_layers) for share in SHARES]
        budgets = [counts for counts in budgets
                 if any(c < cfg.experts[i] for c, i in zip(counts, cfg.moe_layers, strict=True))]
    else:
        budgets = [tuple(budget.counts(cfg, experts=each, least=least).values())
                   for each in experts]
    if not budgets:
        raise ValueError('safe_sparsity: no budget below what the model has; give experts=')
    return sorted(dict.fromkeys(budgets), key=lambda counts: (-sum(counts), counts))


def _check(
    named: Named,
    budgets: Sequence[tuple[int, ...]],
    stats: Stats | None,
    params: Params,
    cfg: Config,
    metric: str,
    tolerance: float,
    options: Mapping[str, Any],
) -> None:
    """Refuse, with ValueError, what would fail later."""
    choice('metric', metric, UNITS)
    number('tolerance', tolerance)
    if not named:
        raise ValueError('safe_sparsity: no method given; prune.methods() lists them')
    if amounts := sorted({*options} & {*budget.AMOUNTS}):
        raise ValueError(f'safe_sparsity: budgets are given by experts=, not by {amounts[0]}=')
    check_original(cfg, params, stats)
    for name, own in named.values():
        for counts in budgets:
            wanted = request(name, cfg, experts=counts, **{**options, **own})
        wanted.statistics(stats, cfg)


def _source(reference: Reference, stats: Stats | None, group: str | None,
            options: Mapping[str, Any]) -> str:
    """What decides a point beside its method and budget: model, statistics, text, options."""
    digest = hashlib.sha256()
    for label, rows in reference.rows:
        digest.update(label.encode())
        for array in rows:
            digest.update(array.tobytes())
    seen = None if stats is None else (stats.data, stats.tokenizer, stats.reservoir)
    model = fingerprint(reference.params, reference.cfg), reference.cfg.to_json()
    return _digest([model, seen, group, dict(options), digest.hexdigest()])


def _digest(inputs: Any) -> str:
    """16 hex digits of anything JSON can hold."""
    text = json.dumps(inputs, sort_keys=True, default=_said)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _said(value: Any) -> str:
    """An array by its content, anything else as it prints."""
    if not hasattr(value, 'dtype'):
        return repr(value)
    array = np.ascontiguousarray(value)
    return f'{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}'
