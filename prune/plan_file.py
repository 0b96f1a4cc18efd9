"""A plan as one npz file without pickles."""

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_jax.data.cache import replacing
from prune.plan import ARRAYS, MATRICES, LayerPlan, Plan

FORMAT = 'moe-jax plan 3'
BEFORE = 'moe-jax plan 2'  # the same without masks
HEADER = ('format', 'method', 'options', 'experts', 'width', 'expert_hidden', 'model', 'data',
          'clamp')


def save(plan: Plan, path: str | os.PathLike[str]) -> Path:
    """Write arrays and a JSON header; visible only when whole."""
    header = {name: getattr(plan, name) for name in HEADER[1:]} | {'format': FORMAT}
    header['options'] = dict(plan.options)
    arrays: dict[str, np.ndarray] = {}
    header['layers'] = {}
    for i, layer in plan.layers.items():
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
        np.savez_compressed(file, **arrays)
    return Path(path)


def load(path: str | os.PathLike[str]) -> Plan:
    """The plan that `save` wrote, checked again; ValueError names a file that is not one."""
    arrays = _read_npz(Path(path))
    try:
        header = json.loads(arrays.pop('header').tobytes())
        if header['format'] not in (FORMAT, BEFORE):
            raise ValueError(f'format {header["format"]!r}, this version reads {FORMAT!r}')
        layers = {
            int(i): _layer_from(f'{i}/', arrays, meta) for i, meta in header['layers'].items()
        }
        fields = {name: header[name] for name in HEADER[1:]}
        fields['experts'] = tuple(fields['experts'])
        return Plan(layers=layers, **fields)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path}: not a plan this version can read: {error}') from error


def _layer_from(
    prefix: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]
) -> LayerPlan:
    def under(kind: str) -> dict[str, np.ndarray]:
        start = f'{prefix}{kind}/'
        return {k.removeprefix(start): a for k, a in arrays.items() if k.startswith(start)}

    notes = under('notes')
    parts = {name: arrays.get(prefix + name) for name in ARRAYS}
    parts |= {kind: under(kind) for kind in MATRICES}
    return LayerPlan(**parts, fresh=meta['fresh'], rank=meta['rank'], notes=meta['notes'] | notes)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (AttributeError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path}: not a plan file, or cut short: {error}') from error
