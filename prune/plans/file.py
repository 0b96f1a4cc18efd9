"""A plan as one npz file without pickles."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_jax.base import npz
from prune.plans.arrays import ARRAYS, MATRICES
from prune.plans.layer import LayerPlan

FORMAT = 'moe-jax plan 3'
WHAT = 'a plan'
BEFORE = 'moe-jax plan 2'  # the same without masks
FIELDS = ('method', 'options', 'experts', 'width', 'expert_hidden', 'model', 'data', 'clamp')


def write(path: str | os.PathLike[str], layers: Mapping[int, LayerPlan],
          fields: Mapping[str, Any]) -> Path:
    """Write layers and the other fields (`FIELDS`); visible only when whole."""
    header: dict[str, Any] = {**fields, 'format': FORMAT, 'layers': {}}
    arrays: dict[str, np.ndarray] = {}
    for i, layer in layers.items():
        arrays |= {f'{i}/{n}': a for n in ARRAYS if (a := getattr(layer, n)) is not None}
        arrays |= {f'{i}/{kind}/{leaf}': a for kind in MATRICES
                   for leaf, a in getattr(layer, kind).items()}
        plain = {}
        for name, value in layer.notes.items():
            if isinstance(value, np.ndarray):
                arrays[f'{i}/notes/{name}'] = value
            else:
                plain[name] = value
        header['layers'][str(i)] = {'fresh': layer.fresh, 'rank': layer.rank, 'notes': plain}
    npz.write(path, header, arrays, WHAT, compressed=True)
    return Path(path)


def read(path: str | os.PathLike[str]) -> tuple[dict[int, LayerPlan], dict[str, Any]]:
    """Layers, checked again, and fields that `write` wrote; ValueError: the file is no plan."""
    header, arrays = npz.read(path, WHAT, _largest)
    try:
        if header['format'] not in (FORMAT, BEFORE):
            raise ValueError(f'format {header["format"]!r}, this version reads {FORMAT!r}')
        layers = {
            int(i): _layer_from(f'{i}/', arrays, meta) for i, meta in header['layers'].items()
        }
        fields = {name: header[name] for name in FIELDS}
        return layers, fields | {'experts': tuple(fields['experts'])}
    except npz.DAMAGE as error:
        raise ValueError(f'{path}: not a plan this version can read: {error}') from error


def _layer_from(
    prefix: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]
) -> LayerPlan:
    def under(kind: str) -> dict[str, np.ndarray]:
        start = f'{prefix}{kind}/'
        return {k.removeprefix(start): a for k, a in arrays.items() if k.startswith(start)}

    notes = under('notes')
    parts: dict[str, Any] = {name: arrays.get(prefix + name) for name in ARRAYS}
    parts |= {kind: under(kind) for kind in MATRICES}
    return LayerPlan(**parts, fresh=meta['fresh'], rank=meta['rank'], notes=meta['notes'] | notes)


def _largest(header: Mapping[str, Any], name: str) -> int:
    """The bytes that an array of a plan can have; ValueError for a name that is none of a plan."""
    layer, _, kind = name.partition('/')
    if layer not in header['layers'] or kind.partition('/')[0] not in (*ARRAYS, *MATRICES, 'notes'):
        raise ValueError(f'{name} is no array of a plan')
    experts, width, hidden = max(header['experts']), header['width'], header['expert_hidden']
    # The largest are weights in the place of experts' own, and permutations of hidden units.
    return 8 * experts * max(width * hidden, experts, width, 1)
