"""One calibration pass: additive routing statistics, per layer and group, that serve every method.

N tokens, R router rows, D width. Sums are taken on the device in float32 per batch and added on the
host in float64; counts are integers. Padding never counts.

    name        shape   sum over valid tokens t of
    tokens      []      1
    count       [R]     1[r in chosen_t]                        (C1)
    count_top1  [R]     1[r = argmax probs_t]                   (C2)
    dropped     [R]     1[r in chosen_t, but its expert was full]
    gate_sum    [R]     applied gate of r, 0 where not chosen   (C3)
    prob_sum    [R]     softmax probability of r                (C4)
    logit_sum   [R]     z_tr                                    (C13)
    logit_gram  [R, R]  z_t z_t^T                               (C13)
    input_sum   [D]     router input x_t
"""

import dataclasses
import io
import json
import struct
import zipfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.config import Config
from moe_jax.data.cache import replacing
from moe_jax.fingerprint import fingerprint as model_fingerprint
from moe_jax.inputs import checked
from moe_jax.model import Params, Record, forward

FORMAT = 1
COUNTS = ('tokens', 'count', 'count_top1', 'dropped')
SUMS = ('gate_sum', 'prob_sum', 'logit_sum', 'logit_gram', 'input_sum')
Sums = dict[str, np.ndarray]
# What zipfile, numpy and json raise on bytes that are no statistics file.
DAMAGE = (ValueError, KeyError, TypeError, IndexError, EOFError, RuntimeError, OverflowError,
          MemoryError, SyntaxError, struct.error, zipfile.BadZipFile)


@dataclasses.dataclass(frozen=True)
class Stats:
    """Additive statistics: group name -> layer index -> statistic name -> array.

    `a + b` merges shards, batches or runs of the same model; the order does not matter for counts
    and only in the last float64 digit for sums.
    """

    fingerprint: str
    groups: dict[str, dict[int, Sums]]

    def __add__(self, other: Self) -> Self:
        if self.fingerprint != other.fingerprint:
            raise ValueError(
                f'statistics of two models cannot be added: {self.fingerprint} and '
                f'{other.fingerprint}; observe both data sets with one model'
            )
        groups = dict(self.groups)
        for name, layers in other.groups.items():
            groups[name] = _add_layers(groups[name], layers) if name in groups else layers
        return dataclasses.replace(self, groups=groups)

    def layer(self, index: int, group: str | None = None) -> Sums:
        """Statistics of one layer, of one group or summed over all."""
        if group is not None and group not in self.groups:
            raise KeyError(f'no group {group!r} in these statistics; there are '
                           f'{sorted(self.groups)}')
        if index not in self.layers:
            raise KeyError(f'no layer {index} in these statistics; there are {self.layers}')
        names = sorted(self.groups) if group is None else [group]
        total = self.groups[names[0]][index]
        for name in names[1:]:
            total = _add(total, self.groups[name][index])
        return total

    @property
    def layers(self) -> tuple[int, ...]:
        """Indices of the layers that were observed."""
        return tuple(sorted(next(iter(self.groups.values()))))

    def save(self, path: str | Path) -> None:
        """Write an .npz without pickles, complete or not at all."""
        header = {'format': FORMAT, 'fingerprint': self.fingerprint, 'groups': sorted(self.groups)}
        arrays = {'header': np.frombuffer(json.dumps(header).encode(), np.uint8)}
        for g, name in enumerate(header['groups']):
            for layer, sums in self.groups[name].items():
                arrays |= {f'{g}/{layer}/{key}': value for key, value in sums.items()}
        with replacing(path) as temporary, temporary.open('wb') as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; ValueError for anything else, FileNotFoundError for nothing."""
        content = io.BytesIO(Path(path).read_bytes())
        try:
            arrays = _read(content)
            header = json.loads(arrays.pop('header').tobytes())
            if header['format'] != FORMAT:
                raise ValueError(f'it has format {header["format"]} and this is {FORMAT}; observe '
                                 'again')
            groups: dict[str, dict[int, Sums]] = {name: {} for name in header['groups']}
            for key, value in arrays.items():
                g, layer, name = key.split('/')
                groups[header['groups'][int(g)]].setdefault(int(layer), {})[name] = value
            _check_complete(groups)
            return cls(header['fingerprint'], groups)
        except DAMAGE as error:
            raise ValueError(f'{path}: not a statistics file of moe-jax: {error}') from error


def observe(
    cfg: Config,
    params: Params,
    batches: Iterable[Mapping[str, Any]],
    *,
    fingerprint: str | None = None,
) -> Stats:
    """Run the model's own routing over `batches` and sum what every method needs.

    Each batch: 'tokens' int [B, T], 'mask' bool [B, T] (False is padding) or 'segments' int [B, T]
    (0 is padding), optional 'group' str (a task, domain or language; default 'all'). The
    fingerprint defaults to the model's (`moe_jax.fingerprint`), by which `prune.plan` refuses the
    statistics of another model. Raises ValueError when the model has no experts, no
    token is valid, a token id is outside the vocabulary, or a statistic is not finite.
    """
    if not cfg.moe_layers:
        raise ValueError('observe: no layer of this model has experts; there is nothing to observe')
    collect = _collector(cfg)
    groups: dict[str, dict[int, Sums]] = {}
    for batch in batches:
        mask = batch['segments'] if 'segments' in batch else batch['mask']
        tokens, segments = checked(cfg, batch['tokens'], mask, 'observe')
        if not segments.any():
            continue
        sums = jax.device_get(collect(params, tokens, segments))
        layers = {i: _to_host(i, layer) for i, layer in sums.items()}
        name = batch.get('group') or 'all'
        groups[name] = _add_layers(groups[name], layers) if name in groups else layers
    if not groups:
        raise ValueError('observe: no valid token in the batches (empty, or only padding)')
    return Stats(model_fingerprint(params, cfg) if fingerprint is None else fingerprint, groups)


@lru_cache(maxsize=32)
def _collector(cfg: Config):
    @jax.jit
    def collect(params, tokens, segments):
        _, out = forward(cfg, params, tokens, segments, routing=True)
        return {i: _sums(record, out['valid']) for i, record in out['routing'].items()}

    return collect


def _sums(record: Record, valid_N: jax.Array) -> dict[str, jax.Array]:
    """The statistics of one layer over one batch; arrays [R], [R, R], [D] and a scalar."""
    rows = record.logits.shape[-1]
    weight = valid_N.astype(jnp.float32)[:, None]
    z, p = record.logits * weight, record.probs * weight
    dropped = valid_N[:, None] & ~record.kept
    return {
        'tokens': valid_N.sum(dtype=jnp.int32),
        'count': _tally(record.ids, jnp.broadcast_to(valid_N[:, None], record.ids.shape), rows),
        'count_top1': _tally(record.ids[:, :1], valid_N[:, None], rows),
        'dropped': _tally(record.ids, dropped, rows),
        'gate_sum': jnp.zeros((rows,), jnp.float32)
        .at[record.ids.ravel()]
        .add((record.gates * weight).ravel()),
        'prob_sum': p.sum(axis=0),
        'logit_sum': z.sum(axis=0),
        'logit_gram': jnp.einsum('nr,ns->rs', z, z, precision=jax.lax.Precision.HIGHEST),
        'input_sum': (record.inputs.astype(jnp.float32) * weight).sum(axis=0),
    }


def _tally(ids_NK: jax.Array, where_NK: jax.Array, rows: int) -> jax.Array:
    return jnp.zeros((rows,), jnp.int32).at[ids_NK.ravel()].add(where_NK.ravel().astype(jnp.int32))


def _to_host(index: int, layer: Mapping[str, np.ndarray]) -> Sums:
    for name, value in layer.items():
        if not np.isfinite(value).all():
            raise ValueError(f'observe: {name} of layer_{index} is not finite; look for NaN and '
                             f'infinity in the weights up to layer_{index}/moe/router')
    return {
        name: np.asarray(value, np.int64 if name in COUNTS else np.float64)
        for name, value in layer.items()
    }


def _add(a: Sums, b: Sums) -> Sums:
    return {name: a[name] + b[name] for name in a}


def _add_layers(a: dict[int, Sums], b: dict[int, Sums]) -> dict[int, Sums]:
    return {i: _add(a[i], b[i]) for i in a}


def _read(content: io.BytesIO) -> dict[str, np.ndarray]:
    """The arrays of an .npz as `np.savez` writes it: stored, so never larger than the file."""
    with zipfile.ZipFile(content) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError('it is compressed')
    with np.load(content, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    for key, value in arrays.items():
        if not isinstance(value, np.ndarray):
            raise ValueError(f'{key} is not an array')
    return arrays


def _check_complete(groups: dict[str, dict[int, Sums]]) -> None:
    if not groups or not all(groups.values()) or len({frozenset(g) for g in groups.values()}) > 1:
        raise ValueError('its groups do not hold the same layers')
    for name, layers in groups.items():
        for index, sums in layers.items():
            if missing := sorted({*COUNTS, *SUMS} - set(sums)):
                raise ValueError(f'group {name!r}, layer {index}: no {", ".join(missing)}')
