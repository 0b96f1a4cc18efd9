"""Signals of a teacher: made just before a step, or beforehand and kept with the packed rows.

B rows, T tokens, V vocabulary, D width of the teacher, E its experts, G experts of the student, M
members: experts of the teacher that one of the student stands for. Names and shapes of signals:

    teacher_logits       [B, T, V]    its logits, or instead of all of them
    teacher_ids          [B, T, k]    its k likeliest tokens,
    teacher_top          [B, T, k+1]  their logits and tau log sum exp(z / tau) of all others,
    teacher_temperature  [B, T]       and the tau that this was made for
    teacher_stream       [B, T, n, D] its residual stream after n chosen layers,
    teacher_layers       [B, T, n]    and which these are
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.base import sharding
from moe_jax.base.sharding import replicated
from moe_jax.base.tree import Params, take
from moe_jax.config import Config
from moe_jax.data import batches
from moe_jax.model.decoder import forward
from moe_jax.model.inputs import checked
from train.objectives import losses
from train.objectives.objective import Batch

LOGITS, STREAM, TEMPERATURE = 'teacher_logits', 'teacher_stream', 'teacher_temperature'
LAYERS = 'teacher_layers'
TOP = ('teacher_ids', 'teacher_top')


class Question(NamedTuple):
    """The signals asked of a teacher: all logits or the `top` best, streams after `layers`."""

    logits: bool = True
    top: int | None = None
    layers: tuple[int, ...] = ()


def teach(
    cfg: Config,
    params: Params,
    packed: batches.Packed,
    *,
    batch: int,
    logits: bool = True,
    top: int | None = None,
    temperature: float = 1.0,
    layers: Sequence[int] = (),
    dtype: str = 'float32',
) -> dict[str, np.ndarray]:
    """`packed` rows {'tokens', 'segments', ...} [rows, T] with a teacher's signals added.

    Streams of such rows carry the signals to `distill`, which then needs no teacher. Logits take
    4 V bytes a token; with `top` only that many and the mass of all others are kept, for the one
    `temperature`. layers: whose residual streams are kept. dtype: of logits and streams as kept.
    The teacher reads `batch` rows at a time, as in evaluation. Raises ValueError for a `top`,
    layers or a dtype that cannot be, if nothing is asked, and for NaN.
    """
    question = Question(logits and top is None, top if logits else None, tuple(layers))
    _check(cfg, question, temperature)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f'teach: dtype={dtype!r}: must be one of floats, such as float16')
    if min(count := len(packed['tokens']), batch) < 1:
        raise ValueError(f'teach: {count} packed rows, batch={batch}: give at least one')
    checked(cfg, packed['tokens'], packed['segments'], 'teach')
    kept: dict[str, list[np.ndarray]] = {}
    rows = {name: packed[name] for name in ('tokens', 'segments')}
    for part in batches.heldout(rows, batch):
        signals = _signals(cfg, params, part['tokens'], part['segments'],
                           np.float32(temperature), question)
        for name, value in signals.items():
            kept.setdefault(name, []).append(_kept(name, np.asarray(value), dtype))
    out = dict(packed) | {name: np.concatenate(parts)[:count] for name, parts in kept.items()}
    # What all rows have in common is in each, so that streams keep it; it takes no memory.
    shape = packed['tokens'].shape
    if question.top:
        out[TEMPERATURE] = np.broadcast_to(np.float32(temperature), shape)
    if question.layers:
        layers_of = np.asarray(question.layers, np.int32)
        out[LAYERS] = np.broadcast_to(layers_of, (*shape, len(layers_of)))
    return out


def ask(
    cfg: Config, params: Params, question: Question, temperature: float,
    home: jax.sharding.Sharding, batch: Batch,
) -> Batch:
    """A step's batch [A, B, T] with the teacher's signals, micro-batch by micro-batch.

    The teacher may lie on other devices than the batch; its signals are brought to the batch, or to
    `home` where the batch lies nowhere yet.
    """
    there = _rows_of(params)
    pairs = [_beside((batch['tokens'][i], batch['segments'][i]), there)
             for i in range(batch['tokens'].shape[0])]
    signals = [_signals(cfg, params, *pair, np.float32(temperature), question) for pair in pairs]
    with sharding.on_mesh(signals):
        stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *signals)
    return batch | _beside(stacked, getattr(batch['tokens'], 'sharding', home))


def gather_experts(
    cfg: Config, params: Params, mixes: Mapping[int, np.ndarray], home: jax.sharding.Sharding
) -> dict[str, Any]:
    """{layer: {'of': the teacher's experts [G, M, ...], 'share': [G, M]}}, beside the student.

    Expert g of the student stands for sum_m share[g, m] of[g, m]; fewer than M members are filled
    up with shares of 0.
    """
    gathered = {}
    for i, mix_GE in mixes.items():
        share_GE = np.asarray(mix_GE, np.float32)
        most = int((share_GE != 0).sum(axis=1).max())
        members = np.argsort(share_GE == 0, axis=1, kind='stable')[:, :most]
        share = np.take_along_axis(share_GE, members, axis=1)
        flat = take(params[f'layer_{i}']['moe']['experts'], members.ravel())
        of = jax.tree.map(lambda leaf, shape=members.shape: leaf.reshape(*shape, *leaf.shape[1:]),
                          flat)
        gathered[f'layer_{i}'] = {'of': _beside(of, home), 'share': jax.device_put(share, home)}
    return gathered


def check_signals(cfg: Config, packed: batches.Packed, temperature: float, question: Question,
                  width: int) -> None:
    """Refuse, with ValueError, rows whose signals a student of this config cannot use."""
    wanted: dict[str, tuple[int, ...]] = {}
    if question.logits:
        wanted[LOGITS] = (cfg.vocab,)
    if question.layers:
        wanted[STREAM] = (len(question.layers), width)
    for name, rest in wanted.items():
        shape = packed[name].shape if name in packed else None
        if shape != (*packed['tokens'].shape, *rest):
            raise ValueError(f'packed rows: {name} has shape {shape}, and [rows, T] + {list(rest)} '
                             'is wanted; make it with train.teach, or give the teacher')
    if question.top:
        _check_best(cfg, packed, temperature)
    if question.layers and (made := _constant(packed, LAYERS)) != list(question.layers):
        raise ValueError(f'packed rows: {STREAM} was kept after layers {made} and the recipe says '
                         f'{list(question.layers)}; give train.teach the same, in this order')


def _kept(name: str, value: np.ndarray, dtype: str) -> np.ndarray:
    """A signal in the dtype it is kept in; ids as they are. ValueError for NaN and overflow."""
    if name == TOP[0]:
        return value
    with np.errstate(over='ignore'):
        kept = value.astype(dtype)
    if np.isnan(value).any() or not np.isfinite(kept[np.isfinite(value)]).all():
        raise ValueError(f'teach: {name} is NaN or too large for {dtype}; look for NaN in the '
                         'teacher, or choose a wider dtype')
    return kept


def _check_best(cfg: Config, packed: batches.Packed, temperature: float) -> None:
    shapes = [packed[name].shape if name in packed else None for name in (*TOP, TEMPERATURE)]
    assert shapes[0] is not None  # `TOP` is there, or nobody asks
    *rows, top = shapes[0]
    if shapes[1:] != [(*rows, top + 1), tuple(rows)]:
        raise ValueError(f'packed rows: {", ".join((*TOP, TEMPERATURE))} have shapes {shapes}, '
                         'which do not belong together; make them with train.teach')
    if not 0 <= packed[TOP[0]].min() <= packed[TOP[0]].max() < cfg.vocab:
        raise ValueError(f'packed rows: {TOP[0]} has tokens beyond the vocab={cfg.vocab} of the '
                         'student; the teacher must share its vocabulary')
    if (made := _constant(packed, TEMPERATURE)) != float(np.float32(temperature)):
        raise ValueError(f'packed rows: their best logits were kept for temperature {made} and the '
                         f'recipe says {temperature}; give train.teach the same')


def _constant(packed: batches.Packed, name: str) -> Any:
    """The value that all tokens [rows, T] have under a name; None if they differ or have none."""
    if name not in packed:
        return None
    first = packed[name][0, 0]
    return first.tolist() if (packed[name] == first).all() else None


@partial(sharding.jit, static_argnames=('cfg', 'question'))
def _signals(
    cfg: Config, params: Params, tokens: jax.Array, segments: jax.Array, temperature: jax.Array,
    question: Question,
) -> dict[str, jax.Array]:
    """The signals of one batch [B, T]."""
    logits, out = forward(cfg, params, tokens, segments,
                          watch=('stream',) if question.layers else ())
    signals = {}
    if question.logits:
        signals[LOGITS] = logits
    if question.top:
        ids = jax.lax.top_k(logits, question.top)[1].astype(jnp.int32)
        signals |= dict(zip(TOP, (ids, losses.with_rest(logits, ids, temperature)), strict=True))
    if question.layers:
        signals[STREAM] = jnp.stack([out['stream'][i] for i in question.layers], axis=2)
    return signals


def _rows_of(params: Params) -> jax.sharding.Sharding:
    """Where a model wants the rows of its batches."""
    mesh = sharding.mesh_of(params)
    return replicated(jax.tree.leaves(params)[0]) if mesh is None else sharding.by_rows(mesh)


def _beside(arrays: Any, place: jax.sharding.Sharding) -> Any:
    """Arrays moved to the devices of `place`, where they do not lie there already."""
    there = place.device_set
    return jax.tree.map(
        lambda a: a if isinstance(a, jax.Array) and a.sharding.device_set == there
        else jax.device_put(a, place), arrays)


def _check(cfg: Config, question: Question, temperature: float) -> None:
    if not (question.logits or question.top or question.layers):
        raise ValueError('teach: nothing is asked; give logits=True or layers')
    if question.top is not None and not 1 <= question.top < cfg.vocab:
        raise ValueError(f'teach: top={question.top}: give 1 to {cfg.vocab - 1}, or None for all '
                         f'{cfg.vocab} logits')
    check_layers(cfg, question.layers)
    if not 0 < temperature < np.inf:
        raise ValueError(f'teach: temperature={temperature}: must be positive and finite')


def check_layers(cfg: Config, layers: Sequence[int]) -> None:
    """Refuse, with ValueError, layers that a model does not have, and repeats."""
    if not set(layers) <= set(range(cfg.layers)) or len(set(layers)) < len(layers):
        raise ValueError(f'layers={list(layers)}: give distinct layers from 0 to {cfg.layers - 1}')
