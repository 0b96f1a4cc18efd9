"""The safetensors files of a folder: which tensors they hold, checked before any is read.

Everything wrong with a folder is told in one message. Nothing outside the folder is opened, and
nothing is unpickled or executed.
"""

import dataclasses
import json
import stat
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (numpy knows bfloat16 only after this)
import numpy as np
from safetensors import SafetensorError, safe_open

SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
DTYPES = {'F32': 'float32', 'BF16': 'bfloat16', 'F16': 'float16'}
LARGEST_JSON = 100 << 20
SHOWN = 12


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor's file, dtype (numpy's name) and shape."""

    file: str
    dtype: str
    shape: tuple[int, ...]


class Shards:
    """An open folder: `tensors` by name; `read` gives one, or a slice of it.

    Files stay open, memory-mapped, as long as this object lives.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.tensors, self._files = _open(self.folder)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """A tensor as numpy, or rows of its axis 0 alone; a copy of that much and no more."""
        file = self._files[self.tensors[name].file]
        if rows is None:
            return file.get_tensor(name)
        return file.get_slice(name)[rows]


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
    if index is not None and not faults:
        faults += _index_faults(index, tensors)
    if faults:
        raise ValueError(f'{folder}: {listed(faults)}')
    stray = sorted({p.name for p in folder.glob('*.safetensors')} - set(files))
    if stray:
        warnings.warn(f'{folder}: {listed(stray)} not part of the model (not in its index); '
                      'not read', stacklevel=4)
    return tensors, handles


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ValueError naming the file for anything else."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f'larger than {LARGEST_JSON:,} bytes')
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 are ValueErrors too
        raise ValueError(f'{path}: not JSON: {error}') from error
    if not isinstance(value, dict):
        raise ValueError(f'{path}: holds {type(value).__name__}, not an object')
    return value


def listed(items: list[str]) -> str:
    """A few of many, for messages: the first ones and how many more."""
    more = f' and {len(items) - SHOWN} more' if len(items) > SHOWN else ''
    return '; '.join(items[:SHOWN]) + more


def inside(folder: Path, name: str) -> Path:
    """The path of a file that a folder's index names, refused unless it is a file of the folder.

    A link is followed only to where the hub's own cache keeps its files: from
    REPO/snapshots/REVISION to REPO/blobs. Nothing is opened to find out.
    """
    plain = name and name not in ('.', '..') and not set(name) & set('/\\\0')
    if not plain:
        raise ValueError(f'{folder}: the index names {name!r}, which is no file of this folder; '
                         'refused')
    path = folder / name
    real, home = path.resolve(), folder.resolve()
    cached = home.parent.name == 'snapshots' and real.parent == home.parent.parent / 'blobs'
    if real.parent != home and not cached:
        raise ValueError(f'{path}: leads out of the folder, to {real}; refused')
    try:
        regular = stat.S_ISREG(real.stat().st_mode)
    except OSError:
        raise ValueError(f'{name} is missing') from None
    if not regular:
        raise ValueError(f'{path}: is no regular file; refused')
    return path


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
        return safe_open(str(path), framework='np')
    except (SafetensorError, ValueError, OverflowError, OSError) as error:
        size = path.stat().st_size
        wanted = _expected_size(path)
        told = '' if wanted is None or wanted == size else f', its header says {wanted:,}'
        raise ValueError(f'{name} is damaged ({size:,} bytes{told}): {error}; copy it again'
                         ) from error


def _expected_size(path: Path) -> int | None:
    """How long a file should be by its own header; None where that cannot be read either."""
    try:
        with path.open('rb') as file:
            length, = struct.unpack('<Q', file.read(8))
            if length > LARGEST_JSON:
                return None
            header = json.loads(file.read(length))
        ends = [entry['data_offsets'][1] for key, entry in header.items() if key != '__metadata__']
        return 8 + length + max(ends, default=0)
    except (struct.error, ValueError, KeyError, TypeError, IndexError, AttributeError,
            RecursionError):
        return None


def _headers(name: str, file: Any, known: Mapping[str, Tensor]
             ) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of one file, and what is wrong with them."""
    found, faults = {}, []
    for key in file.keys():  # noqa: SIM118  (not a dict)
        entry = file.get_slice(key)
        dtype = entry.get_dtype()
        if key in known:
            faults.append(f'{key} is in {known[key].file} and in {name}')
        elif dtype not in DTYPES:
            faults.append(f'{key} is {dtype}: quantised or not a number of a model; dequantise it '
                          f'first ({", ".join(DTYPES)} are read)')
        else:
            found[key] = Tensor(name, DTYPES[dtype], tuple(entry.get_shape()))
    return found, faults


def _index_faults(index: Mapping[str, str], tensors: Mapping[str, Tensor]) -> list[str]:
    """Where the index and the files disagree: swapped or stale shards."""
    faults = []
    for name in sorted(index.keys() | tensors.keys()):
        if name not in tensors:
            faults.append(f'{name} is not in {index[name]}, where the index says it is')
        elif name not in index:
            faults.append(f'{name} is in {tensors[name].file}, but not in the index')
        elif index[name] != tensors[name].file:
            faults.append(f'{name} is in {tensors[name].file}, the index says {index[name]}')
    return faults
