"""The safetensors files of a folder: which tensors they hold, checked before any is read.

Everything wrong with a folder is told in one message. Nothing outside the folder is opened, and
nothing is unpickled or executed.
"""

import copy
import dataclasses
import json
import os
import re
import stat
import struct
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (numpy knows bfloat16 only after this)
import numpy as np
from safetensors import SafetensorError, safe_open

from moe_jax.families.family import is_buffer

SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
DTYPES = {'F32': 'float32', 'BF16': 'bfloat16', 'F16': 'float16', 'F64': 'float64'}
COUNTS = 'BOOL', 'I64'  # of masks and positions; weights that are quantized have other dtypes
LARGEST_JSON = 100 << 20
SHOWN, SHOWN_TENSORS = 12, 3
HUBS_NAME = re.compile(r'[0-9a-f]{40}|[0-9a-f]{64}')  # of a file in the hub's cache: its digest
DEQUANTIZE = ('dequantize them first, with transformers: from_pretrained(..., dtype="bfloat16") '
              'with its dequantize option, then save_pretrained')


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor's file, dtype, shape and name there.

    dtype is numpy's name for one that a weight may have, and the file's own for any other.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    name: str  # in the file


class Shards:
    """An open folder: `tensors` by name; `read` gives one, or a slice of it.

    Files stay open, memory-mapped, as long as this object lives.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.tensors, self._files = _open(self.folder)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """A tensor as numpy, or rows of its axis 0 alone; a copy of that much and no more."""
        tensor = self.tensors[name]
        file = self._files[tensor.file]
        if rows is None:
            return file.get_tensor(tensor.name)
        return file.get_slice(tensor.name)[rows]

    def renamed(self, names: Mapping[str, str]) -> 'Shards':
        """The same open files, their tensors under new names; those not among `names` keep theirs.
        """
        other = copy.copy(self)
        other.tensors = {names.get(name, name): tensor for name, tensor in self.tensors.items()}
        return other


def _open(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Every tensor, and every file open; ValueError with all that is wrong."""
    index = _index(folder)
    files = [SINGLE] if index is None else sorted(set(index.values()))
    faults, handles, tensors = [], {}, {}
    for name in files:
        try:
            handles[name] = _open_file(folder, name)
        except (ValueError, OSError) as error:
            faults.append(str(error))
            continue
        found, bad = _headers(name, handles[name], tensors)
        tensors |= found
        faults += bad
    faults += _quantized(tensors)
    if index is not None:
        faults += _index_faults(index, tensors, handles)
    if faults:
        raise ValueError(f'{folder}: {listed(faults)}')
    stray = sorted({p.name for p in folder.glob('*.safetensors')} - set(files))
    if stray:
        warnings.warn(f'{folder}: {listed(stray)} not part of the model (not in its index); '
                      'not read', stacklevel=6)
    return tensors, handles


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ValueError naming the file for anything else."""
    status = path.stat()
    try:
        if not stat.S_ISREG(status.st_mode):
            raise ValueError('is no regular file')
        if status.st_size > LARGEST_JSON:
            raise ValueError(f'larger than {LARGEST_JSON:,} bytes')
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 are ValueErrors too
        raise ValueError(f'{path}: not JSON: {error}') from error
    if not isinstance(value, dict):
        raise ValueError(f'{path}: holds {type(value).__name__}, not an object')
    return value


def listed(items: list[str], most: int = SHOWN) -> str:
    """A few of many, for messages: the first ones and how many more."""
    more = f' and {len(items) - most} more' if len(items) > most else ''
    return '; '.join(items[:most]) + more


def grouped(names: Mapping[str, list[str]]) -> list[str]:
    """Sentences about tensors: each once, of its first tensor, with the number of the others."""
    def others(items: list[str]) -> str:
        shown = listed(items[1:], SHOWN_TENSORS - 1)
        return f' (likewise {len(items) - 1} more: {shown})' if len(items) > 1 else ''

    return [f'{items[0]} {rest}{others(items)}' for rest, items in names.items()]


def inside(folder: Path, name: str) -> Path:
    """The path of a file that a folder's index names, refused unless it is a file of the folder.

    A link is followed only to where the hub's own cache keeps its files: from
    REPO/snapshots/REVISION to REPO/blobs, and from anywhere to models--NAME/blobs/DIGEST, as the
    hub's client made them in folders of the user's choice. Other links are refused, since a folder
    that came from elsewhere could show a private file as its own. Nothing is opened to find out.
    """
    plain = name not in ('', '.', '..') and name.isprintable() and not set(name) & set('/\\')
    if not plain:
        raise ValueError(f'{folder}: the index names {name!r}, which is no file of this folder; '
                         'refused')
    path = folder / name
    real, home = Path(os.path.realpath(path)), folder.resolve()
    cached = home.parent.name == 'snapshots' and real.parent == home.parent.parent / 'blobs'
    if real.parent != home and not cached and not _is_blob(real):
        raise ValueError(f'{path}: leads out of the folder, to {real}; refused. If you trust that '
                         'file, put a copy in place of the link: `cp -rL FOLDER NEW` copies a '
                         'folder so')
    try:
        regular = stat.S_ISREG(real.stat().st_mode)
    except OSError:
        raise ValueError(f'{name} is missing') from None
    if not regular:
        raise ValueError(f'{path}: is no regular file; refused')
    return path


def _is_blob(path: Path) -> bool:
    """Whether a path is that of a file of a model in the hub's cache, wherever the cache is."""
    repo = path.parent.parent.name
    return (path.parent.name == 'blobs' and repo.startswith('models--')
            and HUBS_NAME.fullmatch(path.name) is not None)


def _index(folder: Path) -> Mapping[str, str] | None:
    """The index's weight_map, or None where one file holds everything."""
    if (folder / SINGLE).exists() or (folder / SINGLE).is_symlink():
        return None
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(_nothing(folder))
    weights = read_json(inside(folder, INDEX)).get('weight_map')
    if not isinstance(weights, dict) or not weights or not all(
            isinstance(file, str) for file in weights.values()):
        raise ValueError(f'{folder / INDEX}: has no weight_map of tensor names to files')
    return weights


def _nothing(folder: Path) -> str:
    pickled = sorted(p.name for p in folder.glob('*.bin')) + sorted(
        p.name for p in folder.glob('*.pt*'))
    if pickled:
        return (f'{folder}: only pickled weights ({listed(pickled)}), which run code when opened '
                f'and are never read. Convert them where you trust them: `from transformers import '
                f"AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained(FOLDER)"
                f".save_pretrained(NEW)` writes safetensors")
    return f'{folder}: neither {SINGLE} nor {INDEX} here; is this the folder of a model?'


def _open_file(folder: Path, name: str) -> Any:
    path = inside(folder, name)
    try:
        file = safe_open(str(path), framework='np')
        times = Counter(key for key, _ in _header(path)[1])
        if repeated := [key for key, count in times.items() if count > 1]:
            raise ValueError(f'its header has {listed(repeated)} more than once')
    except (SafetensorError, ValueError, OverflowError, OSError) as error:
        raise ValueError(f'{name} is damaged ({_sizes(path)}): {error}; copy it again') from error
    return file


def _header(path: Path) -> tuple[int, list[tuple[str, Any]]]:
    """Length of a file's header and its entries, repeated ones too, all objects as pairs."""
    with path.open('rb') as file:
        length, = struct.unpack('<Q', file.read(8))
        if length > LARGEST_JSON:
            raise ValueError(f'a header of {length:,} bytes')
        return length, json.loads(file.read(length), object_pairs_hook=list)


def _sizes(path: Path) -> str:
    """How long a file is and, where that can be read and differs, should be by its own header."""
    size = path.stat().st_size
    try:
        length, entries = _header(path)
        wanted = 8 + length + max((dict(fields)['data_offsets'][1] for key, fields in entries
                                   if key != '__metadata__'), default=0)
    except (struct.error, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return f'{size:,} bytes'
    known = isinstance(wanted, int) and size != wanted < 2**63
    return f'{size:,} bytes, its header says {wanted:,}' if known else f'{size:,} bytes'


def _headers(name: str, file: Any, known: Mapping[str, Tensor]
             ) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of one file that no other has, and what is wrong with them."""
    tensors: dict[str, Tensor] = {}
    repeated: dict[str, list[str]] = {}
    for key in file.keys():  # noqa: SIM118  (not a dict)
        if key in known:
            repeated.setdefault(f'is in {known[key].file} and in {name}', []).append(key)
            continue
        entry = file.get_slice(key)
        dtype = str(entry.get_dtype())
        tensors[key] = Tensor(name, DTYPES.get(dtype, dtype), tuple(entry.get_shape()), key)
    return tensors, grouped(repeated)


def _quantized(tensors: Mapping[str, Tensor]) -> list[str]:
    """The fault of tensors whose dtype is none of a weight, nor of a buffer; empty without any."""
    odd = [f'{name} in {tensor.file} is {tensor.dtype}' for name, tensor in tensors.items()
           if tensor.dtype not in (*DTYPES.values(), *COUNTS) and not is_buffer(name)]
    return [f'{len(odd)} of {len(tensors)} tensors are quantized, or no numbers of a model: '
            f'{listed(odd, SHOWN_TENSORS)}; {DEQUANTIZE}'] if odd else []


def _index_faults(index: Mapping[str, str], tensors: Mapping[str, Tensor],
                  opened: Collection[str]) -> list[str]:
    """Where the index and the files that opened disagree: swapped or stale shards."""
    faults: dict[str, list[str]] = {}
    for name in sorted(index.keys() | tensors.keys()):
        if name not in tensors:
            if index[name] not in opened:
                continue
            fault = f'is not in {index[name]}, where the index says it is'
        elif name not in index:
            fault = f'is in {tensors[name].file}, but not in the index'
        elif index[name] != tensors[name].file:
            fault = f'is in {tensors[name].file}, the index says {index[name]}'
        else:
            continue
        faults.setdefault(fault, []).append(name)
    return grouped(faults)
