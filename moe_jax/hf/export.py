"""A model as a folder that transformers opens: whole and proved, or absent.

Everything goes into a temporary sibling, is opened again and compared with what is in memory, and
is renamed last.
"""

import json
import math
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from moe_jax.base.checks import integer
from moe_jax.base.files import replacing_folder
from moe_jax.base.narrowing import Casts
from moe_jax.base.tree import Params, host, leaves_with_paths
from moe_jax.config import Config
from moe_jax.families.family import Family, layer_of
from moe_jax.families.fields import EXPERTS
from moe_jax.hf import expressible, layout, load, writer
from moe_jax.hf.folder import SideFiles
from moe_jax.hf.hub import located
from moe_jax.hf.manifest import MANIFEST, SHA256, digests
from moe_jax.hf.shards import INDEX, SINGLE
from moe_jax.model.params import check_params

SHARD_BYTES = 5 * 10**9
# What training may change without the folder being another model: transformers knows none of it.
OURS = ('capacity_train', 'capacity_eval', 'min_capacity', 'balance', 'zloss', 'jitter', 'dtype',
        'experts', 'aliases', 'constants', 'clamp')
Progress = Callable[[str, int], None]


def export_hf(
    path: str | Path,
    cfg: Config,
    params: Params,
    *,
    like: str | Path,
    lineage: Mapping[str, Any] | None = None,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a folder of the family, names and layout of `like`, and compare it before it appears.

    like: the Hugging Face checkpoint the model came from, or a native one that was converted from
    such a folder. Tensors keep the dtype they have in `params`, files hold at most `shard_bytes`
    each, tokenizer and generation config are copied, and moe_jax.json says where the model came
    from (`lineage`, anything JSON can hold) with the SHA-256 of every file. progress is called with
    'write' or 'compare' and a number of bytes. Raises ValueError where a Hugging Face checkpoint
    cannot say what the config says, FileExistsError for a path that exists.
    """
    integer('shard_bytes', shard_bytes, 1)
    path, side = Path(path).absolute(), SideFiles.of(located(like))
    check_params(cfg, params, str(path))
    base, family, raw = layout.read_config(side.folder)
    expressible.check(cfg, base)
    _check_same(cfg, base)
    leaves = layout.leaves(cfg, family, side.tensors)
    planned = _planned(leaves, params)
    total = sum(tensor.bytes for tensor in planned)
    with replacing_folder(path, _check_ours, size=total, what=f'exporting {path}',
                          overwrite=overwrite) as temporary:
        known = _write_shards(temporary, planned, shard_bytes, progress)
        written = _config(cfg, family, raw, params, side.tensors is None or _ahead(
            cfg, family, side.tensors))
        (temporary / layout.CONFIG).write_text(json.dumps(written, indent=2) + '\n')
        side.copy(temporary)
        note = _provenance(family, cfg, like, lineage, digests(temporary, known))
        (temporary / MANIFEST).write_text(json.dumps(note, indent=1) + '\n')
        _compare(temporary, cfg, params, progress)


def _check_ours(path: Path) -> None:
    if not (path / MANIFEST).is_file():
        raise ValueError(f'{path}: was not exported by moe-jax (it has no {MANIFEST}) and is not '
                         'overwritten')


def _check_same(cfg: Config, base: Config) -> None:
    """Refuse a config that differs from `like`'s in more than the experts' number."""
    ours, theirs = cfg.as_dict(), base.as_dict()
    changed = [f'{name} is {value!r}, there {theirs.get(name)!r}' for name, value in ours.items()
               if name not in OURS and value != theirs.get(name)]
    if [n > 0 for n in cfg.experts] != [n > 0 for n in base.experts]:
        changed.append('other layers have experts')
    if changed:
        raise ValueError(f'this model is not of the form of `like`: {"; ".join(changed)}. Give the '
                         'folder it came from')


def _planned(leaves: list[layout.Leaf], params: Params) -> list[writer.Planned]:
    """Every tensor on disk, in layer order, with the function that makes it from the leaves."""
    by_path = dict(leaves_with_paths(params))
    makers: dict[str, list[tuple[layout.Leaf, int | None]]] = {}
    for leaf in sorted(leaves, key=_order):
        for e, name in enumerate(leaf.names):
            makers.setdefault(name, []).append((leaf, e if leaf.slot.per_expert else None))
    planned = []
    for name, sources in makers.items():
        leaf = sources[0][0]
        dtype = np.dtype(by_path[leaf.path].dtype)
        if dtype.name not in writer.CODES:
            raise ValueError(f'{leaf.path} is {dtype.name}; only {", ".join(writer.CODES)} can be '
                             'exported')
        shape = leaf.slot.disk_shape(leaf.shape)
        planned.append(writer.Planned(
            name, dtype, shape,
            lambda sources=sources, shape=shape, dtype=dtype: _make(by_path, sources, shape, dtype)
        ))
    return planned


def _order(leaf: layout.Leaf) -> tuple[int, str]:
    layer = layer_of(leaf.path)
    return (-1 if layer is None else layer), leaf.path


def _make(by_path: Mapping[str, Any], sources: list[tuple[layout.Leaf, int | None]],
          shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """One tensor on disk from the leaves that share it."""
    tensor = np.empty(shape, dtype)
    for leaf, e in sources:
        array = by_path[leaf.path]
        leaf.slot.to_disk(host(array, ... if e is None else e), tensor)
    return tensor


def _write_shards(folder: Path, planned: list[writer.Planned], largest: int,
                  progress: Progress | None) -> dict[str, str]:
    """The files of tensors and, for several, their index; returns SHA-256 by file name."""
    files = writer.split(planned, largest)
    names = [SINGLE] if len(files) == 1 else [
        f'model-{i + 1:05}-of-{len(files):05}.safetensors' for i in range(len(files))]
    report = None if progress is None else (lambda count: progress('write', count))
    known = {name: writer.write(folder / name, tensors, report)
             for name, tensors in zip(names, files, strict=True)}
    if len(files) > 1:
        weights = {tensor.name: name for name, tensors in zip(names, files, strict=True)
                   for tensor in tensors}
        index = {'metadata': {'total_size': sum(t.bytes for t in planned)}, 'weight_map': weights}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + '\n')
    return known


def _config(cfg: Config, family: Family, raw: Mapping[str, Any], params: Params,
            left_out: bool) -> dict[str, Any]:
    """config.json of `like` with the new number of experts, under every name it is given there."""
    written = dict(raw)
    count = cfg.experts[cfg.moe_layers[0]]
    for name in [n for n in EXPERTS if raw.get(n) is not None] or [family.expert_field]:
        written[name] = count
    written.pop('auto_map', None)  # code of the folder it came from, which is not copied
    written.pop('quantization_config', None)  # the tensors are plain, whatever they were before
    dtype = np.dtype(params['embed']['tokens'].dtype).name
    names = [name for name in ('dtype', 'torch_dtype') if raw.get(name) is not None]
    written |= dict.fromkeys(names or ['dtype'], dtype)
    if left_out:
        written |= {name: 0 for name in ('num_nextn_predict_layers', 'num_mtp_layers')
                    if raw.get(name)}
    return written


def _ahead(cfg: Config, family: Family, tensors: Mapping[str, Any]) -> bool:
    """Whether `like` has modules for multi-token prediction, which are not written."""
    return any(family.is_ahead(name, cfg.layers) for name in tensors)


def _provenance(family: Family, cfg: Config, like: str | Path, lineage: Mapping[str, Any] | None,
                noted: Mapping[str, str]) -> dict[str, Any]:
    return {
        'made_by': f'moe-jax {version("moe-jax")}', 'jax': jax.__version__,
        'python': platform.python_version(), 'family': family.model_type,
        'like': Path(like).name, 'experts': list(cfg.experts), 'lineage': dict(lineage or {}),
        SHA256: dict(noted),
    }


def _compare(folder: Path, cfg: Config, params: Params, progress: Progress | None) -> None:
    """Open what was written and hold every leaf against memory, byte for byte."""
    source = load.open_folder(folder)
    if (source.cfg.experts, source.cfg.layers) != (cfg.experts, cfg.layers):
        raise ValueError(f'{folder}: reads as experts={source.cfg.experts}, not {cfg.experts}')
    by_path, casts = dict(leaves_with_paths(params)), Casts(folder)
    for leaf in source.leaves:
        memory = by_path[leaf.path]
        for rows in _chunks(leaf.shape):
            disk = load.read(source, leaf, rows, casts)
            if disk.tobytes() != host(memory, rows).tobytes():
                raise ValueError(f'{folder}: {leaf.path} reads back differently from what was '
                                 'written; is the disk sound? Nothing was exported')
        if progress is not None:
            progress('compare', math.prod(leaf.shape) * memory.dtype.itemsize)


def _chunks(shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Slices that cover a leaf: expert by expert where it has three axes."""
    first, rest = shape[0], tuple(slice(0, n) for n in shape[1:])
    if len(shape) < 3:
        return [(slice(0, first), *rest)]
    return [(slice(e, e + 1), *rest) for e in range(first)]
