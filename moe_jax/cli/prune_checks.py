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
    common, faults = request.common, []
    if counts is None and len(cfg.moe_layers) > 1:
        cause = '--mass' if wanted.mass is not None else f'the spread {wanted.spread!r}'
        faults.append(f'{cause} may leave layers with unequal numbers of experts (use --spread '
                      'layer with --experts, --ratio, --parameters or --memory)')
    sizes = [] if counts is None else list(counts.values())
    if len(set(sizes)) > 1:
        faults.append(f'layers keep unequal numbers of experts, {sizes} (give one number, and '
                      '--first-layer same)')
    if sizes and min(sizes) < cfg.topk:
        faults.append(f'{min(sizes)} experts in a layer are fewer than a token uses, which would '
                      f'change topk={cfg.topk} (keep at least {cfg.topk}, without --clamp)')
    drops = counts is None or any(n < cfg.experts[i] for i, n in counts.items())
    if drops and common['replace'] == 'mean':
        faults.append('dropped experts become constants (use --replace none)')
    elif drops and common['gates'] == 'preserve_mass' and cfg.traits.rescales:
        faults.append('router rows of dropped experts stay in the softmax (use --gates slice)')
    if request.own.get('router_init') == 'alias':
        faults.append('merged experts are shared by several router rows (use another router_init '
                      'in --options)')
    if faults:
        raise ValueError('--to hf: transformers has no config for what these options make: '
                         f'{"; ".join(faults)}. Or use --to native, which can store it')


def check_sources(text: Mapping[str, Any], stats: Path | None, layerwise: bool) -> None:
    """Refuse, with ValueError, text without --layerwise, and --layerwise beside statistics."""
    if text and not layerwise:
        raise ValueError(f'--{", --".join(text)}: for --layerwise, which reads text; without it '
                         'statistics come from --stats')
    if stats is not None and layerwise:
        raise ValueError('--layerwise collects its own statistics from --tasks; leave --stats out')
