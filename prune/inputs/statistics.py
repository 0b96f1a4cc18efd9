"""The statistics a method needs, fetched and checked before it plans.

Letters: E experts of a layer, D model width, F hidden width, S tokens of the reservoir.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from moe_jax.base.checks import nearest
from moe_jax.calibration.stats import Stats
from moe_jax.calibration.table import BINS, statistic
from moe_jax.config import Config

LayerStats = Mapping[str, np.ndarray]  # statistics of one layer, by name
Layers = Mapping[int, LayerStats]


def fetch(
    method: str,
    stats: Stats | None,
    cfg: Config,
    group: str | None,
    needs: Sequence[str],
    welcome: Collection[str] = (),
) -> Layers:
    """The needed statistics of every MoE layer as checked arrays, sums in float64.

    `welcome` ones come too where they are there. Raises ValueError for what is missing, of another
    shape, not finite, negative where it counts, or empty.
    """
    if not needs and stats is None:
        return {}
    if stats is None:
        raise ValueError(f'method {method!r} needs the statistics {list(needs)}; see '
                         'moe_jax.observe')
    check_groups(stats, cfg, group)
    return {i: fetch_layer(method, stats, cfg, i, group, needs, welcome) for i in cfg.moe_layers}


def fetch_layer(
    method: str,
    stats: Stats,
    cfg: Config,
    index: int,
    group: str | None,
    needs: Sequence[str],
    welcome: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """One layer of `fetch`, of statistics whose groups are checked."""
    layer = stats.layer(index, group, {*needs, *welcome, 'tokens'})
    wanted = [*needs, *(n for n in welcome if n in layer and n not in needs)]
    arrays = {n: _checked(method, cfg, index, n, layer.get(n)) for n in wanted}
    if 'tokens' in layer and layer['tokens'] <= 0:
        raise ValueError(f'statistics of layer {index} saw no token; observe some batches first')
    return arrays


def check_groups(stats: Stats, cfg: Config, group: str | None) -> None:
    """Refuse statistics that are empty, of other layers, or lack the group."""
    if group is not None and group not in stats.groups:
        known = nearest(str(group), list(stats.groups))
        raise ValueError(f'group {group!r} is not in the statistics; {known}')
    if not stats.groups:
        raise ValueError('the statistics are empty; observe some batches first')
    for label, layers in stats.groups.items():
        if tuple(sorted(layers)) != cfg.moe_layers:
            raise ValueError(
                f'statistics of group {label!r} have layers {sorted(layers)}, the model has MoE '
                f'layers {list(cfg.moe_layers)}; observe this model'
            )


def _checked(method: str, cfg: Config, layer: int, name: str, value: np.ndarray | None
             ) -> np.ndarray:
    about = statistic(name)
    if value is None:
        how = f' with {option(name)}' if about.option else ''
        raise ValueError(
            f'method {method!r} needs the statistic {name!r}, which layer {layer} lacks; '
            f'observe again{how}'
        )
    value = np.asarray(value)
    sizes: dict[str | int, int] = {
        'R': cfg.router_rows(layer), 'D': cfg.width, 'F': cfg.expert_hidden, 'B': BINS,
        'k': cfg.topk_in(layer) - 1}
    shape = tuple(sizes.get(s, s) for s in about.shape)
    fits = value.ndim == len(shape) and all(
        s in ('S', 'n') or s == n for s, n in zip(shape, value.shape, strict=True))
    if '...' not in shape and not fits:
        raise ValueError(
            f'statistic {name!r} of layer {layer} has shape {value.shape}, this model asks for '
            f'{shape}; observe this model'
        )
    counts = about.kind in ('count', 'tally')
    if not np.isfinite(value).all() or (counts and (value < 0).any()):
        raise ValueError(
            f'statistic {name!r} of layer {layer} has values that are not finite, or negative '
            'counts; look for NaN in the model or the data, and observe again'
        )
    return value.astype(np.float64) if about.kind in ('sum', 'max') else value


def options_for(needs: Collection[str], reservoir: int = 8192) -> dict[str, object]:
    """The options of `moe_jax.observe` that these statistics need."""
    options: dict[str, object] = {}
    for name in needs:
        option = statistic(name).option
        if option == 'reservoir' or option.startswith('outputs'):
            options['reservoir'] = reservoir
        if option.startswith('outputs'):
            options['outputs'] = 'all'
        elif option and option != 'reservoir':
            options[option] = True
    return options


def option(name: str) -> str:
    """How to ask `moe_jax.observe` for a statistic, as text."""
    return ', '.join(f'{key}={value!r}' for key, value in options_for([name]).items())


def by_group(
    method: str, stats: Stats | None, cfg: Config, group: str | None, needs: Sequence[str]
) -> Mapping[str, Layers]:
    """As `fetch`, for each group by itself."""
    if stats is None:
        raise ValueError(f'method {method!r} needs the statistics {list(needs)}; see '
                         'moe_jax.observe')
    check_groups(stats, cfg, group)
    names = sorted(stats.groups) if group is None else [group]
    return {name: fetch(method, stats, cfg, name, needs) for name in names}
