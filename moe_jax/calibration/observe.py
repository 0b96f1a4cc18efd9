"""One calibration pass over a model: statistics that serve every method, ratio and budget.

Sums are taken on the device in float32 over some batches and added on the host in float64; counts
are exact integers. Padding never counts, and a row that no token chose has zeros (`Stats.unused`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from moe_jax.base import sharding
from moe_jax.base.tree import Params
from moe_jax.calibration import reservoir as sample
from moe_jax.calibration.collector import Batch, Options, collected, model_pass
from moe_jax.calibration.stats import Stats
from moe_jax.config import Config
from moe_jax.model.fingerprint import fingerprint as model_fingerprint
from moe_jax.model.inputs import each, rows_of


def observe(
    cfg: Config,
    params: Params,
    batches: Iterable[Mapping[str, Any]],
    *,
    reservoir: int = 0,
    outputs: sample.Outputs = 'gram',
    dense: bool = False,
    grams: bool = False,
    gradients: bool = False,
    mesh: Mesh | None = None,
    tokenizer: str = '',
    fingerprint: str | None = None,
) -> Stats:
    """Run the model's own routing over `batches` and sum what every method needs (`stats`).

    Each batch: 'tokens' int [B, T], 'mask' bool [B, T] (False is padding) or 'segments' int [B, T]
    (0 is padding) where there is any, optional 'group' str (a task, domain or language; default
    'all'). 'input_ids' and 'attention_mask' of transformers are taken for tokens and mask.

    reservoir: keep a uniform sample of so many tokens per group, with what all experts give on
      them as `outputs` says: 'gram' their inner products, 'all' the outputs too, 'none'.
    dense: evaluate all experts on all tokens (E/K times the work) for dense_output_sum, _cosine.
    grams: input_gram and hidden_gram (large).
    gradients: grad_* of the language-model loss, row by row (a backward pass).
    mesh: split every batch over its row axes, by default the mesh that params lie on; needs a
      dropless model.
    tokenizer: its fingerprint, recorded. fingerprint: of the model, by default of all
      weights (`moe_jax.model.fingerprint`), by which `prune.plan` refuses those of another model.

    Experts that `cfg.skip` would leave out are observed too. Raises ValueError when the model has
    no experts, no token is valid, a token id is outside the vocabulary, or a statistic is not
    finite.
    """
    options = Options(reservoir, outputs, dense, grams, gradients)
    cfg = cfg.replace(skip=None)
    mesh = _mesh(params, mesh)
    check(cfg, options, mesh)
    parts = sharding.row_parts(mesh)
    run = model_pass(cfg, options, mesh, params)
    items = ((raw.get('group') or 'all', batch, run) for raw in each(batches, 'observe')
             if (batch := rows(cfg, raw, parts)) is not None)
    groups, data = collected(options, items, parts)
    for layers in groups.values() if reservoir else ():
        for i in layers:
            weights = params[f'layer_{i}']['moe']['experts']
            layers[i] = sample.finish(cfg, weights, layers[i], outputs)
    model = model_fingerprint(params, cfg) if fingerprint is None else fingerprint
    return Stats(model, groups, tokenizer, data, reservoir)


def rows(cfg: Config, raw: Mapping[str, Any], parts: int = 1) -> Batch | None:
    """A batch checked, with rows of padding to a multiple of `parts`; None if it is all padding."""
    tokens, segments = rows_of(cfg, raw, 'observe')
    if not segments.any():
        return None
    empty = ((0, -len(tokens) % parts), (0, 0))
    tokens, segments = np.pad(tokens, empty), np.pad(segments, empty)
    return Batch(tokens, segments, sample.keys(tokens, segments))


def _mesh(params: Params, mesh: Mesh | None) -> Mesh | None:
    """The mesh to run on: the one asked for, which has to be of the devices that params lie on."""
    own = sharding.mesh_of(params)
    if mesh is None:
        return own
    sharding.check_types(mesh)
    if own is not None and set(own.devices.flat) != set(mesh.devices.flat):
        raise ValueError(f'observe: params lie on the mesh {dict(own.shape)} and not on the '
                         f'devices of mesh={dict(mesh.shape)}; leave mesh out, or lay them out '
                         'with sharding.place')
    return mesh


def check(cfg: Config, options: Options, mesh: Mesh | None = None) -> None:
    """Refuse, before anything runs, what cannot be observed."""
    if not cfg.moe_layers:
        raise ValueError('observe: no layer of this model has experts; there is nothing to observe')
    if options.reservoir < 0:
        raise ValueError(f'observe: reservoir={options.reservoir}: tokens to keep, 0 or more')
    if cfg.capacity_eval is not None and (mesh is not None or options.gradients):
        raise ValueError('observe: which tokens a capacity drops depends on all that share a '
                         'batch; for a mesh or gradients use cfg.replace(capacity_eval=None)')
    if 'batch' in cfg.traits.reads and mesh is not None:
        raise ValueError(f'observe: router design {cfg.router.design!r} compares tokens of all '
                         "rows of a batch, which a mesh splits; use over='row', or no mesh")
    shared = [i for i in cfg.moe_layers if cfg.alias(i) is not None]
    sampled = options.reservoir and options.outputs != 'none'
    if shared and (options.dense or options.gradients or sampled):
        raise ValueError(f'observe: router rows of layers {shared} share experts; dense, gradients '
                         "and the reservoir's outputs are for models where each has its own")
