"""The statistics of MoE layers alone, from what each of them reads: a model around them is not run.

Routing, experts and sums are those of `observe`, so that equal inputs give equal statistics. For
models whose own forward pass is somebody else's. N tokens of a batch, D width.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.base.tree import Params
from moe_jax.calibration import reservoir
from moe_jax.calibration.block_pass import layer_config
from moe_jax.calibration.collector import Batch, Options, collected
from moe_jax.calibration.expert_sums import ExpertSums
from moe_jax.calibration.layer_sums import layer_sums, sampled
from moe_jax.calibration.observe import check
from moe_jax.calibration.stats import Stats
from moe_jax.calibration.table import Sums
from moe_jax.config import Config
from moe_jax.model.choices import Record
from moe_jax.model.fingerprint import fingerprint
from moe_jax.model.inputs import each
from moe_jax.model.moe import SparseMoe
from moe_jax.model.network import rows_in

UNKNOWN = -1  # token id where none was given


def observe_inputs(
    cfg: Config,
    params: Params,
    batches: Iterable[Mapping[Any, Any]],
    *,
    tokenizer: str = '',
    **options: Any,
) -> Stats:
    """Route what each MoE layer reads, and sum what every method needs (`stats`).

    Each batch: for every MoE layer its index and inputs [..., D], all with the same leading shape;
    optional 'mask' bool or 'segments' int [...] (False or 0 is padding), 'tokens' int [B, T] (their
    ids) and 'group' str. params: layer_<index>/moe is read, no more. options: as for
    `moe_jax.observe`, but mesh and gradients. Batches of one shape share one program.

    Two statistics are of what is not seen here: stream_cosine is NaN, and vocab is empty where
    there are no tokens. With tokens the reservoir is that of `observe`; without, keys are random,
    seeded by what the first MoE layer reads of the batch, so that the sample depends on how the
    data is cut into batches, not on their order.

    Raises ValueError for a layer without inputs, shapes that do not fit, and as `observe` does.
    """
    chosen = Options(**options)
    cfg = cfg.replace(skip=None)
    check(cfg, chosen)
    if chosen.gradients:
        raise ValueError('observe_inputs: gradients need the whole model and its loss; for a model '
                         'of this package use moe_jax.observe, else a method that needs none')
    items = ((raw.get('group') or 'all', batch, _pass(cfg, params, chosen, inputs))
             for raw in each(batches, 'observe_inputs') for inputs, batch in (_rows(cfg, raw),))
    groups, data = collected(chosen, items)
    seen = {group: {i: _finished(cfg, params, i, sums, chosen) for i, sums in layers.items()}
            for group, layers in groups.items()}
    return Stats(fingerprint(params, cfg), seen, tokenizer, data, chosen.reservoir)


def _finished(
    cfg: Config, params: Params, layer: int, sums: Sums, options: Options
) -> Sums:
    """A layer's statistics with what experts give on the sample, without what is not known."""
    known = sums['vocab'][:, 0] != UNKNOWN
    sums = sums | {'stream_cosine': np.asarray(np.nan), 'vocab': sums['vocab'][known]}
    if not options.reservoir:
        return sums
    return reservoir.finish(cfg, params[f'layer_{layer}']['moe']['experts'], sums, options.outputs)


def _pass(cfg: Config, params: Params, options: Options, inputs: Mapping[int, Any]
          ) -> Callable[..., Any]:
    """The collector's pass: (tokens, segments, pick) -> sums and per-token arrays, by layer."""

    def run(tokens, segments, pick):
        sums, rows = {}, {}
        for i, x in inputs.items():
            layer = _watched(layer_config(cfg, i), options.observer)
            moe = params[f'layer_{i}']['moe']
            sums[i], rows[i] = layer(moe, x, tokens, segments, pick)
        return sums, rows

    return run


@lru_cache(maxsize=64)
def _watched(one: Config, observer: ExpertSums) -> Callable[..., Any]:
    """(MoE parameters, x [B, T, D], tokens, segments, pick) -> sums, per token.

    As `block_pass.watched`.
    """

    def run(moe, x, tokens, segments, pick):
        rows = rows_in(one, segments, tokens=tokens)[0]
        _, state = SparseMoe(one, 0, False, observer).apply(
            {'params': moe}, x.astype(one.dtype), rows, mutable=['routing'])
        record, valid = cast(Record, state['routing']['record'][0]), segments.ravel() > 0
        sums = layer_sums(record, jnp.zeros(valid.shape, jnp.float32), valid)
        first = {'top1': record.ids[:, 0]}
        return sums, first | (sampled(record, pick[0]) if pick.shape[1] else {})

    return jax.jit(run)


def _rows(cfg: Config, raw: Mapping[Any, Any]) -> tuple[dict[int, Any], Batch]:
    """A batch checked: inputs [B, T, D] by layer, and its tokens, segments and keys [B, T]."""
    if missing := [i for i in cfg.moe_layers if i not in raw]:
        raise ValueError(f'observe_inputs: a batch has no inputs of MoE layers {missing}; it has '
                         f'{list(raw)}, and each layer index is a key')
    if 'tokens' in cfg.traits.reads and 'tokens' not in raw:
        raise ValueError(f"observe_inputs: a batch has no 'tokens', and a router of design "
                         f'{cfg.router.design!r} reads token ids')
    shapes = {i: tuple(jnp.shape(raw[i])) for i in cfg.moe_layers}
    lead = shapes[cfg.moe_layers[0]][:-1]
    wrong = {i: shape for i, shape in shapes.items() if shape != (*lead, cfg.width)}
    if wrong or not lead:
        raise ValueError(f'observe_inputs: inputs must be [..., {cfg.width}], with one leading '
                         f'shape in all layers; {shapes}')
    mask = raw.get('segments', raw.get('mask'))
    segments = np.ones(lead, np.int32) if mask is None else np.asarray(mask)
    tokens = np.asarray(raw['tokens'] if 'tokens' in raw else np.full(lead, UNKNOWN))
    for name, value, kinds in (('mask', segments, 'iub'), ('tokens', tokens, 'iu')):
        if value.shape != lead or value.dtype.kind not in kinds:
            raise ValueError(f'observe_inputs: {name} is {value.dtype} {value.shape}; it must be '
                             f'of {"bool or " if "b" in kinds else ""}integers, shape {lead}')
    size = lead[-1] if lead[-1] else 1
    segments, tokens = (a.astype(np.int32).reshape(-1, size) for a in (segments, tokens))
    inputs = {i: jnp.reshape(raw[i], (*tokens.shape, cfg.width)) for i in cfg.moe_layers}
    keys = reservoir.keys(tokens, segments) if 'tokens' in raw else _keys(
        inputs[cfg.moe_layers[0]], segments)
    return inputs, Batch(tokens, segments, keys)


def _keys(x: jax.Array, segments: np.ndarray) -> np.ndarray:
    """Keys of tokens without ids, uint64 [B, T]: random, seeded by a hash of the whole batch."""
    seed = hashlib.sha256(np.asarray(x).tobytes() + segments.tobytes()).hexdigest()
    keys = np.random.PCG64(int(seed, 16)).random_raw(segments.size).reshape(segments.shape)
    return np.where(segments > 0, keys, np.uint64(2**64 - 1))
