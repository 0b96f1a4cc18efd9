"""How many experts each MoE layer keeps: how much in all, and how it is spread over layers.

Letters: E experts a layer has, G it keeps.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from moe_jax.base.checks import integer, number
from moe_jax.base.tree import Params, count_bytes, count_params
from moe_jax.config import Config
from prune.budget import spread as spreads
from prune.budget.allocate import allocate
from prune.budget.amounts import AMOUNTS, Amounts, Spread
from prune.subsets.curve import relative_curve
from prune.subsets.error import NEEDS as SAMPLE_NEEDS
from prune.subsets.error import sample_of

# Statistics that a spread reads beside the scores.
NEEDS = dict.fromkeys(('layer', 'global', 'share', 'mass'), ()) | {'error': SAMPLE_NEEDS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget(Amounts):
    """What may stay: `Amounts`, with a spread that is decided.

    A ratio leaves G = E - floor(ratio * E). With the spread 'layer' an amount in parameters or
    memory gives all layers the same G. Of the others, which read experts and ratio as the sum over
    layers, 'mass' is NLLB pruning, and 'error' makes the sum over layers of relative reconstruction
    error least, exactly (`prune.budget.allocate`). A model with `cfg.clamp` clamps already.

    keep_first: the first MoE layer keeps all.
    constants: dropped experts leave a constant and their router row behind.
    """

    spread: Spread = 'layer'
    keep_first: bool = False
    constants: bool = False


def check(cfg: Config, budget: Budget) -> None:
    """Refuse, with ValueError, what no scores could make right."""
    named = [name for name in AMOUNTS if getattr(budget, name) is not None]
    if len(named) != 1:
        raise ValueError(f'give exactly one of experts= (how many to keep), ratio= (share to '
                         f'remove), mass=, parameters= and memory=; got {named or "none"}')
    if not cfg.moe_layers:
        raise ValueError('this model has no MoE layer (every entry of cfg.experts is 0)')
    if budget.mass is not None:
        number('mass', budget.mass, above=0, most=1, note='the share of the score to keep')
    if budget.floor is not None and not 1 <= budget.floor <= min(
            cfg.experts[i] for i in cfg.moe_layers):
        raise ValueError(f'floor={budget.floor!r}: at least 1, at most what every layer has')
    if named[0] in ('experts', 'ratio'):
        counts(cfg, experts=budget.experts, ratio=budget.ratio, least=lowest(cfg, budget))


def check_unscored(budget: Budget) -> None:
    """Refuse, with ValueError, a budget that only scores could spread."""
    for name, value, plain in (('mass', budget.mass, None), ('spread', budget.spread, 'layer')):
        if value != plain:
            raise ValueError(f'{name}={value!r} compares experts by their scores, and this method '
                             "has none; give experts= per layer, or a spread of 'layer'")


def counts(
    cfg: Config,
    *,
    experts: int | Sequence[int] | None = None,
    ratio: float | Sequence[float] | None = None,
    least: int | None = None,
) -> dict[int, int]:
    """Experts to keep in each MoE layer, {layer: G}, from `experts` or `ratio` of `Budget`.

    Raises ValueError, with the valid range, unless least (default topk) <= G <= E in every layer,
    and where router groups could not keep equally many.
    """
    if (experts is None) == (ratio is None):
        raise ValueError('give either experts= (how many to keep) or ratio= (share to remove)')
    if not cfg.moe_layers:
        raise ValueError('this model has no MoE layer (every entry of cfg.experts is 0)')
    least = cfg.topk if least is None else least
    if experts is not None:
        return {
            i: _checked(cfg, i, integer('experts', value, None), least)
            for i, value in _per_layer(cfg, 'experts', experts).items()
        }
    return {
        i: _checked(cfg, i, _kept(cfg.experts[i], value), least)
        for i, value in _per_layer(cfg, 'ratio', ratio).items()
    }


def lowest(cfg: Config, budget: Budget) -> int:
    """The fewest experts a layer may keep."""
    least = 1 if budget.clamp or cfg.clamp else cfg.topk
    if cfg.groups > 1:
        least = cfg.traits.group_least * cfg.groups
    return max(least, budget.floor or 0)


def plain(cfg: Config, params: Params, budget: Budget) -> dict[int, int]:
    """{layer: G} of a budget that no scores spread: one G per layer, or the largest common one."""
    check_unscored(budget)
    least = lowest(cfg, budget)
    if budget.experts is not None or budget.ratio is not None:
        sizes = counts(cfg, experts=budget.experts, ratio=budget.ratio, least=least)
    else:
        most = affordable(cfg, params, budget)
        shrunk = cfg.moe_layers[1:] if budget.keep_first else cfg.moe_layers
        kept = sum(cfg.experts[i] for i in cfg.moe_layers if i not in shrunk)
        each = min(cfg.experts[i] for i in shrunk or cfg.moe_layers)
        room = (most - kept) // len(shrunk) if shrunk else each * (most >= kept)
        size = min(each, room) // cfg.groups * cfg.groups
        if size < least:
            raise _too_small(cfg, params, budget, kept + least * len(shrunk))
        sizes = dict.fromkeys(cfg.moe_layers, size)
    return _first_kept(cfg, budget, sizes)


def spent(
    cfg: Config,
    params: Params,
    budget: Budget,
    scores: Mapping[int, np.ndarray],
    protected: Mapping[int, np.ndarray],
    stats: Mapping[int, Mapping[str, np.ndarray]],
) -> dict[int, int]:
    """{layer: G} of a budget spread by scores {layer: [E]}; protected {layer: bool [E]} count in
    the floors."""
    if budget.spread == 'layer' and budget.mass is None:
        return plain(cfg, params, budget)
    groups, least = cfg.groups, lowest(cfg, budget)
    floors = {i: max(-(-least // groups), _protected_units(protected[i], groups)) for i in scores}
    if budget.keep_first:
        first = min(scores)
        floors[first] = len(scores[first]) // groups
    values = spreads.units(scores, groups)
    if budget.mass is not None:
        sizes = spreads.covering(values, budget.mass, floors)
    else:
        total = _total(cfg, params, budget) // groups
        if total < sum(floors.values()):
            raise _too_small(cfg, params, budget, sum(floors.values()) * groups)
        if budget.spread == 'error':
            sizes = _by_error(cfg, params, scores, floors, total, stats)
        else:
            sizes = spreads.pooled(values, total, floors, budget.spread)
    return {i: n * groups for i, n in sizes.items()}


def affordable(cfg: Config, params: Params, budget: Budget) -> int:
    """How many experts in all fit into `parameters` or `memory`, beside everything else."""
    amount, measure = (budget.parameters, count_params) if budget.memory is None else (
        budget.memory, count_bytes)
    amount = integer('parameters' if budget.memory is None else 'memory', amount)
    rest, price = _prices(cfg, params, budget, measure)
    return max(0, min((amount - rest) // price, sum(cfg.experts)))


def _prices(
    cfg: Config, params: Params, budget: Budget, measure: Callable[[Any], int]
) -> tuple[int, int]:
    """What the model takes without experts, and what each expert adds (the dearest layer's)."""
    rest, price = measure(params), 0
    for i in cfg.moe_layers:
        moe, count = params[f'layer_{i}']['moe'], cfg.experts[i]
        own = measure(moe['experts']) // count
        row = measure(moe.get('router', {})) // count
        vector = own * count // count_params(moe['experts']) * cfg.width if budget.constants else 0
        rest -= (own if budget.constants else own + row) * count - vector * count
        price = max(price, own - vector if budget.constants else own + row)
    return rest, price


def _total(cfg: Config, params: Params, budget: Budget) -> int:
    """Experts that all layers keep together."""
    if budget.experts is None and budget.ratio is None:
        return affordable(cfg, params, budget)
    sizes = counts(cfg, experts=budget.experts, ratio=budget.ratio, least=lowest(cfg, budget))
    return sum(sizes.values())


def _too_small(
    cfg: Config, params: Params, budget: Budget, least: int
) -> ValueError:
    """The error of a budget that keeps fewer than `least` experts in all."""
    if budget.parameters is None and budget.memory is None:
        return ValueError(f'the budget keeps fewer experts than the floors ask for, {least} in all')
    measure, what = (count_params, 'parameters') if budget.memory is None else (
        count_bytes, 'memory')
    rest, price = _prices(cfg, params, budget, measure)
    return ValueError(f'{what}={getattr(budget, what):,} is too small: this model needs '
                      f'{rest:,} without experts and {price:,} for each; the least is '
                      f'{rest + least * price:,}, with {least} experts in all')


def _by_error(
    cfg: Config,
    params: Params,
    scores: Mapping[int, np.ndarray],
    floors: Mapping[int, int],
    total: int,
    stats: Mapping[int, Mapping[str, np.ndarray]],
) -> dict[int, int]:
    """Units of each layer whose relative reconstruction errors sum to the least."""
    curves = {}
    for i, values in scores.items():
        sample = sample_of(stats[i], params[f'layer_{i}']['moe'], cfg)
        sizes = range(floors[i] * cfg.groups, len(values) + 1, cfg.groups)
        curve = relative_curve(sample, cfg, values, sizes)
        curves[i] = {count // cfg.groups: error for count, error in curve.items()}
    return allocate(curves, total=total)


def _protected_units(protected: np.ndarray, groups: int) -> int:
    """Units that hold all protected experts [E]: as many as the fullest router group has."""
    return int(protected.reshape(groups, -1).sum(axis=1).max())


def _first_kept(cfg: Config, budget: Budget, sizes: dict[int, int]) -> dict[int, int]:
    """The sizes {layer: G} with all experts of the first MoE layer, where the budget says so."""
    first = cfg.moe_layers[0]
    return sizes | {first: cfg.experts[first]} if budget.keep_first else sizes


def _per_layer(cfg: Config, name: str, value: Any) -> dict[int, Any]:
    layers = cfg.moe_layers
    if not hasattr(value, '__len__') or isinstance(value, str):
        return dict.fromkeys(layers, value)
    values = list(value)
    if len(values) != len(layers):
        raise ValueError(
            f'{name}={values}: {len(values)} entries, this model has {len(layers)} MoE layers '
            f'({list(layers)}); give one entry for each, or one number'
        )
    return dict(zip(layers, values, strict=True))


def _kept(experts: int, ratio: object) -> int:
    ratio = number('ratio', ratio, 0, 1, note='the share to remove; 0.75 keeps a quarter')
    # 0.29 * 100 is 28.999999999999996 in binary: the nudge makes the floor mean what was written.
    return experts - math.floor(ratio * experts + 1e-9)


def _checked(cfg: Config, layer: int, count: int, least: int) -> int:
    if not least <= count <= cfg.experts[layer]:
        name = 'topk' if least == cfg.topk else 'the floor'
        more = ', or fewer with clamp=True' if least == cfg.topk > 1 else ''
        raise ValueError(
            f'layer {layer}: cannot keep {count} experts; valid: {least} ({name}{more}) to '
            f'{cfg.experts[layer]} (what it has)'
        )
    if count % cfg.groups or (cfg.groups > 1 and count // cfg.groups < cfg.traits.group_least):
        raise ValueError(
            f'layer {layer}: cannot keep {count} experts; the router has {cfg.groups} groups, '
            f'which must keep equally many, at least {cfg.traits.group_least} each: keep '
            f'{cfg.traits.nearest(count)} instead'
        )
    return count
