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

from moe_jax.base.tree import Params, leaves_with_paths, map_with_path
from moe_jax.calibration.stats import Stats
from moe_jax.cli.job import Job
from moe_jax.config import Config
from moe_jax.hf import load as hf_load
from moe_jax.hf.expressible import Kind, Outcome, faults, summary
from moe_jax.hf.folder import is_hf
from moe_jax.model.decoder import shapes
from moe_jax.storage import folder, native
from prune.budget import budget as budgets
from prune.experts.layerwise import layerwise_request
from prune.experts.request import Request, request
from prune.inputs.original import check_original


def check(job: Job, keywords: Mapping[str, Any], targets: bool, model: Path,
          stats: Stats | None) -> None:
    """Raise ValueError for what `prune.plan`, with these keywords, or the export would refuse.

    targets: of `prune.plan_layerwise`.
    """
    cfg = folder.config_of(model)
    check_original(cfg, shapes(cfg), None)
    if job.layerwise:
        wanted = layerwise_request(job.method, cfg, group=job.group, targets=targets, **keywords)
    else:
        wanted = request(job.method, cfg, group=job.group, **keywords)
    budget = wanted.budget
    params = shapes(cfg) if budget.memory is None else stored(model, cfg, job.dtype)
    counts = _counts(cfg, params, wanted)
    if job.to == 'hf':
        _check_export(wanted, cfg, counts)
    if not job.layerwise:
        if stats is None and job.group is not None:
            raise ValueError(f'--group {job.group}: of which statistics? give --stats')
        wanted.statistics(stats, cfg)


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


def _counts(cfg: Config, params: Params, asked: Request) -> dict[int, int] | None:
    """{layer: G} where no scores decide it, else None; ValueError for an impossible budget."""
    wanted = asked.budget
    if asked.call.method.form != 'scores':
        return budgets.plain(cfg, params, wanted)
    if wanted.mass is not None:
        return None
    # Whether the floors can be met does not depend on the scores.
    alone = dataclasses.replace(wanted, spread='layer' if wanted.spread == 'layer' else 'global')
    zeros = {i: np.zeros(cfg.experts[i]) for i in cfg.moe_layers}
    free = {i: np.zeros(cfg.experts[i], bool) for i in cfg.moe_layers}
    counts = budgets.spent(cfg, params, alone, zeros, free, {})
    return counts if wanted.spread == 'layer' else None


def _check_export(asked: Request, cfg: Config, counts: dict[int, int] | None) -> None:
    """Refuse options whose outcome no config of transformers can say, with those that avoid it."""
    found, budget = faults(_outcome(asked, cfg, counts)), asked.budget
    cause = '--mass' if budget.mass is not None else f'the spread {budget.spread!r}'
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
                         f'{summary(found, advice)}. Or use --to native, which can store it')


def _outcome(asked: Request, cfg: Config, counts: dict[int, int] | None) -> Outcome:
    """What the options make, as far as it is known before planning."""
    common, layers = asked.common, cfg.moe_layers
    drops = [i for i in layers if counts is None or counts[i] < cfg.experts[i]]
    means = common.replace == 'mean'
    sizes = list(counts.values()) if counts else None
    return Outcome(
        topk=cfg.topk, counts=sizes if sizes or len(layers) > 1 else [cfg.topk],
        least=min([*(sizes or ()), cfg.topk]), constants=drops if means else (),
        closed=drops if not means and common.gates == 'preserve_mass'
        and cfg.traits.rescales else (),
        shared=layers if asked.call.options.get('router_init') == 'alias' else (),
    )
