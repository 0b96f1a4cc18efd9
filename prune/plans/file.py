"""A plan as one npz file without pickles."""

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_jax.base.files import replacing
from prune.plans.arrays import ARRAYS, MATRICES
from prune.plans.layer import LayerPlan

FORMAT = 'moe-jax plan 3'
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
    text = json.dumps(header, sort_keys=True).encode()
    arrays['header'] = np.frombuffer(text, np.uint8)
    with replacing(path) as temporary, temporary.open('wb') as file:
        # No array is named as its own option.
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    return Path(path)


def read(path: str | os.PathLike[str]) -> tuple[dict[int, LayerPlan], dict[str, Any]]:
    """Layers, checked again, and fields that `write` wrote; ValueError: the file is no plan."""
    arrays = _read_npz(Path(path))
    try:
        header = json.loads(arrays.pop('header').tobytes())
        if header['format'] not in (FORMAT, BEFORE):
            raise ValueError(f'format {header["format"]!r}, this version reads {FORMAT!r}')
        layers = {
            int(i): _layer_from(f'{i}/', arrays, meta) for i, meta in header['layers'].items()
        }
        fields = {name: header[name] for name in FIELDS}
        return layers, fields | {'experts': tuple(fields['experts'])}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
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


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (AttributeError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path}: not a plan file, or cut short: {error}') from error
