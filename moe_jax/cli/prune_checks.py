"""What `moe-jax prune` refuses before it reads weights: from config, headers and statistics alone.

Letters: E experts of a layer, G it keeps.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from moe_jax.base.tree import leaves_with_paths, map_with_path
from moe_jax.calibration.stats import Stats
from moe_jax.cli.prune_request import Request
from moe_jax.config import Config
from moe_jax.hf import load as hf_load
from moe_jax.hf.expressible import Kind, Outcome, faults, told
from moe_jax.hf.folder import is_hf
from moe_jax.model.decoder import shapes
from moe_jax.storage import folder, native
from prune.budget import budget
from prune.budget.budget import Budget
from prune.catalog import registry
from prune.experts.layerwise import layerwise_request
from prune.experts.request import Request as PlanRequest
from prune.experts.request import request as plan_request
from prune.inputs.original import check_original


def check(request: Request, model: Path, seen: Stats | None, to: str, dtype: str | None) -> None:
    """Raise ValueError for what `prune.plan` or the export would refuse later."""
    cfg = folder.config_of(model)
    check_original(cfg, shapes(cfg), None)
    asked = _asked(request, cfg)
    wanted = asked.budget
    params = shapes(cfg) if wanted.memory is None else stored(model, cfg, dtype)
    counts = _counts(cfg, params, wanted, registry.method(request.method).form)
    if to == 'hf':
        _check_export(request, cfg, wanted, counts)
    if request.text is None:
        if seen is None and asked.call.group is not None:
            raise ValueError(f'--group {asked.call.group}: of which statistics? give --stats')
        asked.statistics(seen, cfg)


def stored(model: Path, cfg: Config, dtype: str | None) -> dict[str, Any]:
    """Shape and dtype of every parameter as it will be loaded; no weights are read."""
    if is_hf(model):
        source = hf_load.open_folder(model, dtype)
        kinds = {leaf.path: source.dtype_of(leaf) for leaf in source.leaves}
    else:
        native.load_lineage(model)  # refuses a folder that is not ours
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            tree = reader.metadata(model.absolute() / 'params').item_metadata.tree
        kinds = {path: leaf.dtype if dtype is None or '/router/' in path else jnp.dtype(dtype)
                 for path, leaf in leaves_with_paths(tree)}
    return map_with_path(
        lambda path, leaf: jax.ShapeDtypeStruct(leaf.shape, kinds[path]), shapes(cfg))


def _asked(request: Request, cfg: Config) -> PlanRequest:
    """As `prune.plan`, or `prune.plan_layerwise`, will see it."""
    keywords = {**request.amounts, **request.common, **request.own}
    if request.text is None:
        return plan_request(request.method, cfg, **keywords)
    asked = layerwise_request(request.method, cfg, targets=request.text.get('targets', False),
                              **keywords)
    if not request.text.get('tasks'):
        raise ValueError('--layerwise reads text; give --tasks, such as boolq or lm-code')
    if asked.call.group is not None and asked.call.group not in request.text['tasks']:
        raise ValueError(f'--group {asked.call.group}: is not among --tasks '
                         f'{" ".join(request.text["tasks"])}')
    return asked


def _counts(cfg: Config, params: Mapping[str, Any], wanted: Budget, form: str
            ) -> dict[int, int] | None:
    """{layer: G} where no scores decide it, else None; ValueError for an impossible budget."""
    if form != 'scores':
        return budget.plain(cfg, params, wanted)
    if wanted.mass is not None:
        return None
    # Whether the floors can be met does not depend on the scores.
    alone = dataclasses.replace(wanted, spread='layer' if wanted.spread == 'layer' else 'global')
    zeros = {i: np.zeros(cfg.experts[i]) for i in cfg.moe_layers}
    free = {i: np.zeros(cfg.experts[i], bool) for i in cfg.moe_layers}
    found = budget.spent(cfg, params, alone, zeros, free, {})
    return found if wanted.spread == 'layer' else None


def _check_export(request: Request, cfg: Config, wanted: Budget, counts: dict[int, int] | None
                  ) -> None:
    """Refuse options whose outcome no config of transformers can say, with those that avoid it."""
    found = faults(_outcome(request, cfg, counts))
    cause = '--mass' if wanted.mass is not None else f'the spread {wanted.spread!r}'
    advice: dict[Kind, str] = {
        'unknown': f'by {cause}; use --spread layer with --experts, --ratio, --parameters or '
                   '--memory',
        'unequal': 'give one number, and --first-layer same',
        'few': f'keep at least {cfg.topk}, without --clamp',
        'constants': 'use --replace none',
        'closed': 'use --gates slice',
        'shared': 'use another router_init in --options',
    }
    if found:
        raise ValueError('--to hf: transformers has no config for what these options make: '
                         f'{told(found, advice)}. Or use --to native, which can store it')


def _outcome(request: Request, cfg: Config, counts: dict[int, int] | None) -> Outcome:
    """What the options make, as far as it is known before planning."""
    common, layers = request.common, cfg.moe_layers
    drops = [i for i in layers if counts is None or counts[i] < cfg.experts[i]]
    means = common['replace'] == 'mean'
    sizes = counts and list(counts.values())
    return Outcome(
        topk=cfg.topk, counts=sizes if sizes or len(layers) > 1 else [cfg.topk],
        least=min([*(sizes or ()), cfg.topk]), constants=drops if means else (),
        closed=drops if not means and common['gates'] == 'preserve_mass'
        and cfg.traits.rescales else (),
        shared=layers if request.own.get('router_init') == 'alias' else (),
    )


def check_sources(text: Mapping[str, Any], stats: Path | None, layerwise: bool) -> None:
    """Refuse, with ValueError, text without --layerwise, and --layerwise beside statistics."""
    if text and not layerwise:
        raise ValueError(f'--{", --".join(text)}: for --layerwise, which reads text; without it '
                         'statistics come from --stats')
    if stats is not None and layerwise:
        raise ValueError('--layerwise collects its own statistics from --tasks; leave --stats out')
