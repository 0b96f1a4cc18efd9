"""Writing safetensors files as a stream, so that no more than one tensor is held beside the model.

The library's own writer wants every tensor of a file in memory as bytes first. The format: the
header's length (8 bytes, little endian), a JSON header, the tensors' bytes in its order.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

CODES = {'float32': 'F32', 'bfloat16': 'BF16', 'float16': 'F16'}


@dataclasses.dataclass(frozen=True)
class Planned:
    """A tensor to be written, and the function that makes it, C-ordered, when its turn comes."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        """Of the tensor on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


def write(path: Path, tensors: list[Planned], progress: Callable[[int], None] | None = None
          ) -> str:
    """Write one file, flushed to disk; returns its SHA-256."""
    digest = hashlib.sha256()
    with path.open('xb') as file:
        for block in itertools.chain([_header(tensors)], _bodies(tensors)):  # one at a time
            file.write(block)
            digest.update(block)
            if progress is not None:
                progress(len(block))
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def split(tensors: Iterable[Planned], largest: int) -> list[list[Planned]]:
    """Tensors in files of at most `largest` bytes each, in their order; a larger one is alone."""
    files: list[list[Planned]] = [[]]
    size = 0
    for tensor in tensors:
        if files[-1] and size + tensor.bytes > largest:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.bytes
    return files


def _header(tensors: list[Planned]) -> bytes:
    header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}  # transformers asks for it
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.bytes
        header[tensor.name] = {'dtype': CODES[tensor.dtype.name], 'shape': list(tensor.shape),
                               'data_offsets': [start, end]}
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # so that the tensors are aligned
    return struct.pack('<Q', len(text)) + text


def _bodies(tensors: list[Planned]) -> Iterable[memoryview]:
    for tensor in tensors:
        array = tensor.make()
        if array.shape != tensor.shape or array.dtype != tensor.dtype:
            raise ValueError(f'{tensor.name}: {array.dtype} {array.shape} is not the planned '
                             f'{tensor.dtype} {tensor.shape}')
        flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)  # a buffer
        yield memoryview(flat)
