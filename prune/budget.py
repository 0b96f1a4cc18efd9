"""How many experts each MoE layer keeps."""

import math
import operator
from collections.abc import Sequence

from moe_jax.config import Config
from moe_jax.config_checks import group_least, nearest_grouped


def counts(
    cfg: Config,
    *,
    experts: int | Sequence[int] | None = None,
    ratio: float | Sequence[float] | None = None,
) -> dict[int, int]:
    """Experts to keep in each MoE layer, {layer: G}, from exactly one way of saying it.

    experts: how many to keep, one number or one per MoE layer.
    ratio: the share to remove, 0 <= ratio < 1, one number or one per MoE layer;
      G = E - floor(ratio * E).

    Raises ValueError, with the valid range, unless topk <= G <= E in every layer, and where router
    groups could not keep equally many.
    """
    if (experts is None) == (ratio is None):
        raise ValueError('give either experts= (how many to keep) or ratio= (share to remove)')
    if not cfg.moe_layers:
        raise ValueError('this model has no MoE layer (every entry of cfg.experts is 0)')
    if experts is not None:
        return {
            i: _checked(cfg, i, _integer(value))
            for i, value in _per_layer(cfg, 'experts', experts).items()
        }
    return {
        i: _checked(cfg, i, _kept(cfg.experts[i], value))
        for i, value in _per_layer(cfg, 'ratio', ratio).items()
    }


def _per_layer(cfg: Config, name: str, value: object) -> dict[int, object]:
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


def _integer(value: object) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f'experts={value!r}: must be a whole number of experts') from None


def _kept(experts: int, ratio: object) -> int:
    number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
    if not (number and 0 <= ratio < 1):
        raise ValueError(
            f'ratio={ratio!r}: the share to remove must be in [0, 1); 0.75 keeps a quarter'
        )
    # 0.29 * 100 is 28.999999999999996 in binary: the nudge makes the floor mean what was written.
    return experts - math.floor(ratio * experts + 1e-9)


def _checked(cfg: Config, layer: int, count: int) -> int:
    if not cfg.topk <= count <= cfg.experts[layer]:
        raise ValueError(
            f'layer {layer}: cannot keep {count} experts; valid: {cfg.topk} (topk) to '
            f'{cfg.experts[layer]} (what it has)'
        )
    if count % cfg.groups or (cfg.groups > 1 and count // cfg.groups < group_least(cfg)):
        raise ValueError(
            f'layer {layer}: cannot keep {count} experts; the router has {cfg.groups} groups, '
            f'which must keep equally many, at least {group_least(cfg)} each: keep '
            f'{nearest_grouped(cfg, count)} instead'
        )
    return count
