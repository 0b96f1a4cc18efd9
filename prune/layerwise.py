"""Plan layer by layer: every layer is observed on what the layers already shrunk before it give.

Letters: E experts of a layer, G it keeps.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from moe_jax.config import Config
from moe_jax.fingerprint import fingerprint
from moe_jax.layerwise import layerwise
from moe_jax.stats import Stats
from moe_jax.tree import at
from prune import budget, registry
from prune.apply import apply_layer, config_of
from prune.budget import Budget
from prune.plan import LayerPlan, Plan
from prune.planner import plan

COMMON = ('gates', 'replace', 'protect', 'group')  # options of prune.plan that pass through
TARGETS = ('sample_cross', 'sample_square')  # what `targets` takes from the original model


class Layerwise(NamedTuple):
    """The plan, the smaller model it makes (already made), and the statistics it was made from."""

    plan: Plan
    params: dict[str, Any]
    cfg: Config
    stats: Stats


def plan_layerwise(
    name: str,
    params: Mapping[str, Any],
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
    own = {key: value for key, value in options.items() if key not in COMMON}
    chosen = registry.check_options(name, own)
    replace = options.get('replace') or getattr(registry.method(name), 'REPLACE', 'none')
    wanted = Budget(experts=experts, ratio=ratio, parameters=parameters, memory=memory, floor=floor,
                    clamp=clamp, constants=replace == 'mean')
    budget.check(cfg, wanted)
    counts = budget.plain(cfg, params, wanted)
    if not registry.needs(name, chosen):
        raise ValueError(f'{name!r} reads no statistics, so the layers before one do not matter; '
                         'use prune.plan')
    if targets and not set(TARGETS) <= set(registry.needs(name, chosen)):
        raise ValueError(f'targets=True changes nothing for {name!r}, which does not reconstruct '
                         'outputs; it is for naee, greedy, genetic and their like')
    found: dict[int, LayerPlan] = {}

    def compress(i: int, one: Config, layer: Mapping[str, Any], stats: Stats):
        seeded = {'seed': chosen['seed'] + i} if 'seed' in chosen else {}
        small = plan(name, stats, {'layer_0': layer}, one, experts=counts[i], clamp=clamp,
                     **options | seeded)
        found[i] = small.layers[0]
        block = at(layer, 'moe', lambda moe: apply_layer(moe, found[i], one, i))
        return block, config_of(small, one)

    wish = registry.observe_options(name, reservoir=reservoir, **own)
    new, _, stats = layerwise(cfg, params, batches, compress, targets=targets, progress=progress,
                              tokenizer=tokenizer, **wish)
    whole = Plan(
        method=name, layers=found, experts=cfg.experts, width=cfg.width,
        expert_hidden=cfg.expert_hidden, model=fingerprint(params, cfg), data=stats.data,
        clamp=clamp, options={**chosen, **options, 'layerwise': True, 'targets': targets},
    )
    return Layerwise(whole, new, config_of(whole, cfg).fit(new), stats)
