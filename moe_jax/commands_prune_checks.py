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

from moe_jax import checkpoint, storage
from moe_jax.commands_prune import Request
from moe_jax.config import Config
from moe_jax.hf import load as hf_load
from moe_jax.hf.folder import is_hf
from moe_jax.model import shapes
from moe_jax.stats import Stats
from moe_jax.tree import leaves_with_paths, map_with_path
from prune import budget, keep, planner, registry, statistics
from prune.budget import Budget
from prune.layerwise import TARGETS
from prune.original import check_original

DROPPING = {'gates': 'slice', 'replace': 'none', 'protect': 'none'}  # for methods that drop


def check(request: Request, model: Path, seen: Stats | None, to: str, dtype: str | None) -> None:
    """Raise ValueError for what `prune.plan` or the export would refuse later."""
    cfg, form = storage.config_of(model), registry.form(request.method)
    if form == 'plan' and any(request.common[name] != value for name, value in DROPPING.items()):
        raise ValueError('--gates, --replace and --protect are for methods that drop experts; '
                         f'{request.method!r} merges them, and its router_init says what becomes '
                         'of the router')
    check_original(cfg, shapes(cfg), None)
    if request.text is not None:
        _check_text(request)
    wanted = _budget(request)
    budget.check(cfg, wanted)
    params = shapes(cfg) if wanted.memory is None else stored(model, cfg, dtype)
    counts = _counts(cfg, params, wanted, 'plan' if request.text is not None else form)
    if to == 'hf':
        _check_export(request, cfg, wanted, counts)
    if request.text is None:
        _check_stats(request, cfg, seen, wanted)


def stored(model: Path, cfg: Config, dtype: str | None) -> dict[str, Any]:
    """Shape and dtype of every parameter as it will be loaded; no weights are read."""
    if is_hf(model):
        source = hf_load.open_folder(model, dtype)
        kinds = {leaf.path: source.dtype_of(leaf) for leaf in source.leaves}
    else:
        checkpoint.load_lineage(model)  # refuses a folder that is not ours
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            tree = reader.metadata(model.absolute() / 'params').item_metadata.tree
        kinds = {path: leaf.dtype if dtype is None or '/router/' in path else jnp.dtype(dtype)
                 for path, leaf in leaves_with_paths(tree)}
    return map_with_path(
        lambda path, leaf: jax.ShapeDtypeStruct(leaf.shape, kinds[path]), shapes(cfg))


def _budget(request: Request) -> Budget:
    """As `prune.plan`, or `prune.plan_layerwise`, will see it."""
    own = getattr(registry.method(request.method), 'SPREAD', 'layer')
    default = {'spread': 'layer' if request.text is not None else own}
    return Budget(**default | request.amounts, keep_first=request.common['first_layer'] == 'keep',
                  constants=request.common['replace'] == 'mean')


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


def _check_text(request: Request) -> None:
    """Refuse what planning layer by layer cannot do."""
    method, text = request.method, request.text
    for name, plain in (('mass', None), ('spread', 'layer'), ('first_layer', 'same')):
        if (request.amounts | request.common).get(name, plain) != plain:
            flag = name.replace('_', '-')
            raise ValueError(f'--layerwise fixes how many experts each layer keeps beforehand, and '
                             f'--{flag} compares layers; leave it out')
    if not text.get('tasks'):
        raise ValueError('--layerwise reads text; give --tasks, such as boolq or lm-code')
    if (group := request.common['group']) is not None and group not in text['tasks']:
        raise ValueError(f'--group {group}: is not among --tasks {" ".join(text["tasks"])}')
    needs = registry.needs(method, request.own)
    if not needs:
        raise ValueError(f'{method!r} reads no statistics, so the layers before one do not matter; '
                         'leave --layerwise out')
    if text.get('targets') and not set(TARGETS) <= set(needs):
        raise ValueError(f'--targets changes nothing for {method!r}, which does not reconstruct '
                         'outputs; it is for naee, greedy, genetic and their like')


def _check_stats(request: Request, cfg: Config, seen: Stats | None, wanted: Budget) -> None:
    """Refuse statistics that lack what the method and the options read."""
    method, common = request.method, request.common
    if seen is None and common['group'] is not None:
        raise ValueError(f'--group {common["group"]}: of which statistics? give --stats')
    own = registry.needs(method, request.own)
    shared = (*keep.REPLACE_NEEDS[common['replace']], *planner.PROTECT_NEEDS[common['protect']],
              *planner.FIRST_NEEDS[common['first_layer']], *budget.NEEDS[wanted.spread])
    if getattr(registry.method(method), 'PER_GROUP', False):
        statistics.by_group(method, seen, cfg, common['group'], own)
        own = ()
    statistics.fetch(method, seen, cfg, common['group'], (*own, *shared))


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
    elif drops and common['gates'] == 'preserve_mass' and cfg.gate == 'softmax_topk':
        faults.append('router rows of dropped experts stay in the softmax (use --gates slice)')
    if request.own.get('router_init') == 'alias':
        faults.append('merged experts are shared by several router rows (use another router_init '
                      'in --options)')
    if faults:
        raise ValueError('--to hf: transformers has no config for what these options make: '
                         f'{"; ".join(faults)}. Or use --to native, which can store it')
