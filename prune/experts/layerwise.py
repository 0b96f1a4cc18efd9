"""Plan layer by layer: every layer is observed on what the layers already shrunk before it give.

Letters: E experts of a layer, G it keeps.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from moe_jax.base.tree import Params
from moe_jax.calibration.stats import Stats
from moe_jax.config import Config
from prune.budget import budget
from prune.experts.planner import planned, warn_of_growth
from prune.experts.request import Request, request
from prune.inputs.original import check_original, of_group
from prune.plans.plan import Plan
from prune.surgery.layerwise import Layerwise, layer_by_layer

TARGETS = ('sample_cross', 'sample_square')  # what `targets` takes from the original model


def plan_layerwise(
    name: str,
    params: Params,
    cfg: Config,
    batches: Iterable[Mapping[str, Any]],
    *,
    targets: bool = False,
    experts: int | Sequence[int] | None = None,
    ratio: float | Sequence[float] | None = None,
    parameters: int | None = None,
    memory: int | None = None,
    floor: int | None = None,
    clamp: bool = False,
    reservoir: int = 8192,
    tokenizer: str = '',
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Layerwise:
    """As `prune.plan`, but from the first layer to the last, each on the shrunk ones before it.

    So later layers see what they will see in the smaller model, and one layer at a time is on the
    device (REAM's sequential merging). targets: the layer is to give what it gave in the ORIGINAL
    model, so that it makes up for earlier losses; for methods that reconstruct outputs from a
    sample (progressive pruning, Lu et al. 2024, arXiv 2402.14800). `prune.apply` of the plan on the
    original gives `params` and `cfg` again.

    batches as for `moe_jax.observe`, read once; what else the method needs is observed too, with
    `reservoir` tokens a group where it samples. A method's seed is raised by the layer's index.
    options: the method's own, and gates, replace, protect and group of `prune.plan`. The number of
    experts is fixed beforehand, so amounts that compare layers (mass=, spread=) are refused.
    """
    amounts = {'experts': experts, 'ratio': ratio, 'parameters': parameters, 'memory': memory,
               'floor': floor, 'clamp': clamp}
    wanted = layerwise_request(name, cfg, targets=targets, **amounts, **options)
    check_original(cfg, params, None)
    counts, own = budget.plain(cfg, params, wanted.budget), wanted.call.options

    def plan_one(i: int, one: Config, layer: Params, stats: Stats) -> Plan:
        seeded = {'seed': own['seed'] + i} if 'seed' in own else {}
        asked = request(name, one, experts=counts[i], clamp=clamp, spread='layer',
                        group=wanted.call.group, **vars(wanted.common), **{**own, **seeded})
        return planned(asked, stats, layer, one, clamp=clamp)

    result = layer_by_layer(
        params, cfg, of_group(batches, wanted.call.group), plan_one, method=name, clamp=clamp,
        options=wanted.record() | {'layerwise': True, 'targets': targets},
        observe=wanted.call.observe_options(reservoir), targets=targets, tokenizer=tokenizer,
        progress=progress)
    warn_of_growth(result.plan)
    return result


def layerwise_request(name: str, cfg: Config, *, targets: bool = False, **options: Any) -> Request:
    """The keywords of `plan_layerwise`, checked: ValueError for what it cannot do."""
    for key, plain in (('mass', None), ('spread', 'layer'), ('first_layer', 'same')):
        if options.get(key, plain) not in (plain, None):
            raise ValueError(f'{key}={options[key]!r} compares layers, and planning layer by layer '
                             'fixes beforehand how many experts each keeps; leave it out')
    wanted = request(name, cfg, **{**options, 'spread': 'layer'})
    wanted.call.check_layerwise('plan it at once')
    if targets and not set(TARGETS) <= set(wanted.call.needs):
        raise ValueError(f'targets changes nothing for {name!r}, which does not reconstruct '
                         'outputs; it is for naee, greedy, genetic and their like')
    return wanted
