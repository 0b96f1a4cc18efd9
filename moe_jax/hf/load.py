"""A Hugging Face checkpoint as parameters, read one tensor at a time straight to where it belongs.

Peak memory is the model plus one leaf, told before anything is allocated.
"""

import dataclasses
import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from moe_jax.base.checks import choice
from moe_jax.base.narrowing import Casts, warn_of_computing
from moe_jax.base.sharding import Placing
from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.families.family import Family
from moe_jax.hf import layout, naming
from moe_jax.hf.layout import Leaf
from moe_jax.hf.manifest import check_digests
from moe_jax.hf.naming import EMBED, HEAD
from moe_jax.hf.shards import SHOWN_TENSORS, Shards, listed

log = logging.getLogger('moe_jax')
Progress = Callable[[int], None]
FLOATS = {name: np.dtype(getattr(ml_dtypes, name, name))
          for name in ('float32', 'bfloat16', 'float16')}


@dataclasses.dataclass(frozen=True)
class Source:
    """A folder ready to be read: everything about it is known and checked, nothing is read."""

    folder: Path
    cfg: Config
    family: Family
    raw: dict[str, Any]
    shards: Shards
    leaves: list[Leaf]
    dtype: str | None

    def dtype_of(self, leaf: Leaf) -> np.dtype:
        """The dtype a leaf is loaded in: its own, or the one asked for; float32 for float64.

        The router keeps its own: its float32 is what decides between near ties.
        """
        own = {self.shards.tensors[name].dtype for name in leaf.names}
        own = {'float32' if kind == 'float64' else kind for kind in own}
        if self.dtype is not None and '/router/' not in leaf.path:
            return FLOATS[self.dtype]
        return FLOATS[own.pop() if len(own) == 1 else 'float32']

    @property
    def bytes(self) -> int:
        """Of all parameters in memory."""
        return sum(self._size(leaf) for leaf in self.leaves)

    @property
    def largest(self) -> int:
        """Bytes of the largest leaf, which exist twice for a moment."""
        return max(self._size(leaf) for leaf in self.leaves)

    def _size(self, leaf: Leaf) -> int:
        return math.prod(leaf.shape) * self.dtype_of(leaf).itemsize


def open_folder(folder: str | Path, dtype: str | None = None) -> Source:
    """Check a folder's config and headers against each other; ValueError with all that is wrong."""
    folder = Path(folder)
    if dtype is not None:
        choice('dtype', dtype, FLOATS)
    cfg, family, raw = layout.read_config(folder)
    shards, notes = naming.read(folder, cfg.tied)
    leaves = layout.check(folder, cfg, family, shards)
    layout.warn_of_section(folder, raw)
    for note in notes + _unread(cfg, family, shards, leaves):
        log.info('%s: %s', folder, note)
    cfg = cfg if dtype is None else cfg.replace(dtype=dtype)
    return Source(folder, cfg, family, raw, shards, leaves, dtype)


def _unread(cfg: Config, family: Family, shards: Shards, leaves: list[Leaf]) -> list[str]:
    """What of a folder is not read, or not in full, in words."""
    used = {name for leaf in leaves for name in leaf.names} | {HEAD}
    left = [tensor.name for name, tensor in shards.tensors.items() if name not in used]
    ahead = [name for name in left if family.is_ahead(name, cfg.layers)]
    computed = [name for name in left if name not in ahead]
    wide = [name for name, tensor in shards.tensors.items()
            if name in used and tensor.dtype == 'float64']
    kinds = ((ahead, 'of modules for multi-token prediction, which are not loaded'),
             (computed, 'buffers that are computed, or masks, and not loaded'),
             (wide, 'float64 and loaded as float32 at most, with 7 of their 15 digits'))
    return [f'{len(names)} tensors are {what}: {listed(names, SHOWN_TENSORS)}'
            for names, what in kinds if names]


def load(
    source: Source, place: Placing | None = None, progress: Progress | None = None
) -> tuple[Config, Params]:
    """Config and parameters of an open folder.

    place: the sharding of a leaf, by path and shape (None: the first device); each device's share
    is read by itself. progress is called with the bytes of each leaf that is done. Warns, naming
    the tensors, where values are not finite.
    """
    log.info('%s: %.2f GB of parameters, at most %.2f GB more while loading', source.folder,
             source.bytes / 1e9, source.largest / 1e9)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params: dict[str, Any] = {}
    suspects, casts = [], Casts(source.folder)
    check_digests(source.folder)
    _check_tied(source)
    for leaf in source.leaves:
        sharding = device if place is None else place(leaf.path, leaf.shape)
        array = jax.make_array_from_callback(
            leaf.shape, sharding,
            lambda index, leaf=leaf: read(source, leaf, cast(Any, index), casts))
        # Waited for, so that the memory of the host's copy is back before the next one.
        suspects.append((leaf, np.asarray(_finite(array, leaf.slot.per_expert))))
        _put(params, leaf.path, array)
        if progress is not None:
            progress(array.nbytes)
    casts.tell()
    warn_of_computing(source.folder, params, source.cfg.dtype)
    _warn_of_nan(source, suspects)
    return source.cfg, params


def read(source: Source, leaf: Leaf, index: tuple[slice, ...], casts: Casts) -> np.ndarray:
    """A leaf, or a device's share of it, from disk; expert by expert where E is on axis 0.

    Raises ValueError where a finite number has none in the dtype it is loaded in.
    """
    dtype, slot, share = source.dtype_of(leaf), leaf.slot, str(index)
    sizes = [len(range(*s.indices(n))) for s, n in zip(index, leaf.shape, strict=True)]
    out = _buffer(tuple(sizes), dtype)
    if slot.per_expert:
        for row, e in enumerate(range(*index[0].indices(leaf.shape[0]))):
            part = slot.from_disk(source.shards.read(leaf.names[e]))[index[1:]]
            casts.put(leaf.names[e], part, out[row], share)
    elif len(leaf.shape) == 3:  # experts in one tensor
        for row, e in enumerate(range(*index[0].indices(leaf.shape[0]))):
            one = source.shards.read(leaf.names[0], slice(e, e + 1))
            part = slot.from_disk(one)[0][index[1:]]
            casts.put(leaf.names[0], part, out[row], f'{e} {share}')
    else:
        part = slot.from_disk(source.shards.read(leaf.names[0]))[index]
        casts.put(leaf.names[0], part, out, share)
    return out


def _buffer(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array on a boundary of 64 bytes: XLA:CPU takes such memory over without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start:start + size].view(dtype).reshape(shape)


def _finite(array: jax.Array, per_expert: bool) -> jax.Array:
    """Whether all is finite, of each expert or of the whole leaf."""
    axes = tuple(range(1, array.ndim)) if per_expert else None
    return _all_finite(array, axes)


_all_finite = jax.jit(lambda x, axes: jnp.isfinite(x).all(axis=axes), static_argnums=1)


def _warn_of_nan(source: Source, found: list[tuple[Leaf, np.ndarray]]) -> None:
    names = [name for leaf, fine in found
             for name, good in zip(leaf.names, np.atleast_1d(fine), strict=True) if not good]
    if names := list(dict.fromkeys(names)):
        warnings.warn(f'{source.folder}: {len(names)} tensors have NaN or infinite values: '
                      f'{listed(names)}; what reads them gives NaN', stacklevel=3)


def _check_tied(source: Source) -> None:
    """A head on disk although the config ties it to the embedding must be the embedding."""
    shards = source.shards
    if not source.cfg.tied or HEAD not in shards.tensors:
        return
    rows = shards.tensors[HEAD].shape[0]
    for first in range(0, rows, 4096):
        part = slice(first, min(first + 4096, rows))
        head, table = (shards.read(name, part) for name in (HEAD, EMBED))
        if head.dtype != table.dtype or head.tobytes() != table.tobytes():
            raise ValueError(f'{source.folder}: {HEAD} differs from {EMBED}, yet '
                             'config.json ties them; set tie_word_embeddings to false, or remove '
                             'one of them')


def _put(params: dict[str, Any], path: str, leaf: Any) -> None:
    *parents, name = path.split('/')
    for parent in parents:
        params = params.setdefault(parent, {})
    params[name] = leaf
