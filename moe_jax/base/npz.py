"""Arrays and a JSON header as one .npz file without pickles, read with suspicion.

Nothing is unpacked before its name and size are looked at: a file of a kilobyte can say that it
holds gigabytes.
"""

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_jax.base.files import guard_space, replacing

HEADER = 'header'
LARGEST_HEADER = 1 << 26  # bytes
SLACK = 1 << 12  # bytes of an array's own header
# What zipfile, zlib, numpy and json raise on bytes that are no such file.
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, EOFError, RuntimeError,
          OverflowError, MemoryError, SyntaxError, struct.error, zlib.error, zipfile.BadZipFile)
# (header, name) -> bytes that this array may have; raises for a name that does not belong there.
Limit = Callable[[Mapping[str, Any], str], int]


def write(path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Mapping[str, np.ndarray],
          what: str, *, compressed: bool = False) -> None:
    """Write all or nothing; DiskFull, naming the path and the bytes, where they do not fit."""
    path = Path(path)
    text = json.dumps(header, sort_keys=True).encode()
    content: dict[str, Any] = {**arrays, HEADER: np.frombuffer(text, np.uint8)}
    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(array.nbytes + SLACK for array in content.values())
    save = np.savez_compressed if compressed else np.savez
    with (guard_space(path.parent, size, f'saving {what} {path}'), replacing(path) as temporary,
          temporary.open('wb') as file):
        save(file, **content)


def read(path: str | os.PathLike[str], what: str, limit: Limit | None = None
         ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays that `write` wrote.

    limit: how large each array of a compressed file may be; without one nothing may be compressed,
    so that nothing is larger than the file. Raises ValueError, naming the path and `what` it should
    be, for anything else, FileNotFoundError where there is none.
    """
    content = io.BytesIO(Path(path).read_bytes())
    try:
        with zipfile.ZipFile(content) as archive:
            entries = {entry.filename.removesuffix('.npy'): entry for entry in archive.infolist()}
            if len(entries) < len(archive.infolist()):
                raise ValueError('it holds two arrays of one name')
            header = json.loads(_array(archive, entries.pop(HEADER), LARGEST_HEADER, limit
                                       ).tobytes())
            if not isinstance(header, dict):
                raise ValueError('its header is no object')
            sizes = {name: entry.file_size if limit is None else limit(header, name)
                     for name, entry in entries.items()}
            return header, {name: _array(archive, entry, sizes[name], limit)
                            for name, entry in entries.items()}
    except DAMAGE as error:
        raise ValueError(f'{path}: not {what} of moe-jax, or damaged: {error}') from error


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, largest: int, limit: Limit | None
           ) -> np.ndarray:
    if limit is None and entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError('it is compressed')
    if entry.file_size > largest + SLACK:
        raise ValueError(f'{entry.filename} has {entry.file_size:,} bytes, and at most {largest:,} '
                         'are expected')
    with archive.open(entry) as file:
        # Read first, and no more than was said: numpy would allocate what the array claims to be.
        content = file.read(entry.file_size + 1)
    if len(content) != entry.file_size:
        raise ValueError(f'{entry.filename} is longer or shorter than the file says')
    array = np.load(io.BytesIO(content), allow_pickle=False, max_header_size=SLACK)
    if not isinstance(array, np.ndarray):
        raise ValueError(f'{entry.filename} is not an array')
    return array
