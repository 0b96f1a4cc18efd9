"""Statistics as a file: one .npz without pickles, never larger in memory than on disk."""

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_jax.base.files import replacing
from moe_jax.calibration.table import GRADIENTS, STATISTICS, Sums, statistic

Groups = dict[str, dict[int, Sums]]
FORMAT = 2
HEADER = ('fingerprint', 'tokenizer', 'data', 'reservoir')
NEEDED = tuple(name for name, s in STATISTICS.items() if not s.option)
# What zipfile, numpy and json raise on bytes that are no statistics file.
DAMAGE = (ValueError, KeyError, TypeError, IndexError, EOFError, RuntimeError, OverflowError,
          MemoryError, SyntaxError, struct.error, zipfile.BadZipFile)
KINDS = {'count': 'iu', 'tally': 'iu', 'sum': 'f', 'max': 'f', 'sample': 'fu'}


def write(path: str | Path, groups: Groups, fields: Mapping[str, Any]) -> None:
    """Write groups of statistics and the other fields (`HEADER`), complete or not at all."""
    header = {'format': FORMAT, 'groups': sorted(groups), **fields}
    arrays = {'header': np.frombuffer(json.dumps(header).encode(), np.uint8)}
    for g, name in enumerate(header['groups']):
        for layer, sums in groups[name].items():
            arrays |= {f'{g}/{layer}/{key}': value for key, value in sums.items()}
    with replacing(path) as temporary, temporary.open('wb') as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType] (no array is so named)


def read(path: str | Path) -> tuple[Groups, dict[str, Any]]:
    """Groups and fields that `write` wrote.

    ValueError: the file holds anything else; FileNotFoundError: there is none.
    """
    content = io.BytesIO(Path(path).read_bytes())
    try:
        arrays = _read(content)
        header = json.loads(arrays.pop('header').tobytes())
        if header['format'] != FORMAT:
            raise ValueError(f'it has format {header["format"]} and this is {FORMAT}; observe '
                             'again')
        groups: Groups = {name: {} for name in header['groups']}
        for key, value in arrays.items():
            g, layer, name = key.split('/', 2)
            groups[header['groups'][int(g)]].setdefault(int(layer), {})[name] = value
        _check(groups)
        int(header['data'], 16)
        return groups, {name: header[name] for name in HEADER}
    except DAMAGE as error:
        raise ValueError(f'{path}: not a statistics file of moe-jax: {error}') from error


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


def _check(groups: Groups) -> None:
    if not groups or not all(groups.values()) or len({frozenset(g) for g in groups.values()}) > 1:
        raise ValueError('its groups do not hold the same layers')
    for group, layers in groups.items():
        for index, sums in layers.items():
            where = f'group {group!r}, layer {index}'
            if missing := sorted(set(NEEDED) - set(sums)):
                raise ValueError(f'{where}: no {", ".join(missing)}')
            for name, value in sums.items():
                if name not in STATISTICS and name.partition('/')[0] not in GRADIENTS:
                    raise ValueError(f'{where}: {name} is no statistic')
                kind = statistic(name).kind
                if value.dtype.kind not in KINDS[kind]:
                    raise ValueError(f'{where}: {name} is {value.dtype}')
