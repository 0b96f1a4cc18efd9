"""Models on disk: folders that are whole or absent, and notice damage.

config.json    the Config
lineage.json   where the model came from, as its maker told
params/        the arrays, written by orbax
manifest.json  the SHA-256 of every file in params/: orbax itself reads a flipped bit without a sign
"""

import contextlib
import errno
import hashlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from moe_jax import model, processes
from moe_jax.config import Config
from moe_jax.tree import count_bytes, leaves_with_paths, map_with_path
from moe_jax.unbroken import unbroken

FORMAT = 'moe-jax 1'
SLACK = 1 << 20  # bytes of metadata next to the arrays
Placing = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]


class DiskFull(OSError):
    """Too little free space for a save; what was there before is untouched."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.ENOSPC, message)


def save(
    path: str | Path,
    cfg: Config,
    params: Mapping[str, Any],
    lineage: Mapping[str, Any] | None = None,
    *,
    beside: Callable[[Path], None] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model folder in a temporary sibling, then rename it into place.

    `lineage` is anything JSON can hold about where the model came from; `beside` is called with the
    temporary folder, to put more files into it. A path that exists is refused, unless it is an
    empty folder, or a model folder of ours and `overwrite` is set.
    """
    path = Path(path).absolute()
    processes.first(lambda: check_target(path, overwrite, _check_ours))
    check_params(cfg, params, str(path))
    head = json.dumps({'format': FORMAT, 'lineage': dict(lineage or {})}, indent=1, sort_keys=True)
    temporary = path.parent / f'.{path.name}.{processes.same_text(secrets.token_hex(4))}.tmp'

    def begin() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        (temporary / 'config.json').write_text(cfg.to_json())
        (temporary / 'lineage.json').write_text(head)

    def end() -> None:
        manifest = json.dumps(_digests(temporary / 'params'), indent=1, sort_keys=True)
        (temporary / 'manifest.json').write_text(manifest)
        if beside is not None:
            beside(temporary)

    try:
        processes.first(begin)
        with guard_space(path.parent, count_bytes(params), f'saving the model {path}'):
            with unbroken(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
                writer.save(temporary / 'params', args=ocp.args.StandardSave(dict(params)))
            processes.first(end)
        processes.first(lambda: swap(temporary, path))
    finally:
        if processes.is_first():
            shutil.rmtree(temporary, ignore_errors=True)


def load(
    path: str | Path, *, dtype: str | None = None, place: Placing | None = None
) -> tuple[Config, model.Params]:
    """Config and parameters of a model folder, bit for bit as saved.

    dtype: cast everything but the routers, and compute in it. place: the sharding of a leaf, by
    path and shape (None: the first device).
    """
    path = Path(path).absolute()
    _check_ours(path)
    _check_files(path)
    cfg = read_config(path)
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def target(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
        kind = leaf.dtype if dtype is None or '/router/' in name else jnp.dtype(dtype)
        where = first if place is None else place(name, tuple(leaf.shape))
        return jax.ShapeDtypeStruct(leaf.shape, kind, sharding=where)

    with unbroken(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        stored = reader.metadata(path / 'params').item_metadata
        wanted = map_with_path(target, stored.tree)
        check_params(cfg, wanted, str(path))
        params = reader.restore(path / 'params', args=ocp.args.StandardRestore(wanted))
    return cfg if dtype is None else cfg.replace(dtype=dtype), params


def read_config(path: Path) -> Config:
    """The Config of a model folder; ValueError where its config.json is not one."""
    try:
        return Config.from_json((path / 'config.json').read_text())
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f'{path}/config.json: not a moe-jax config: {error}') from error


def load_lineage(path: str | Path) -> dict[str, Any]:
    """What `save` was told about where the model came from; {} if nothing."""
    path = Path(path).absolute()
    _check_ours(path)
    return json.loads((path / 'lineage.json').read_text())['lineage']


def check_params(
    cfg: Config, params: Mapping[str, Any], where: str, only: str = ''
) -> None:
    """Raise ValueError unless params have exactly the paths and shapes of the config.

    only: look at the paths with this text in them alone, such as '/moe/'.
    """
    wanted, found = (
        {path: tuple(leaf.shape) for path, leaf in leaves_with_paths(tree) if only in path}
        for tree in (model.shapes(cfg), params)
    )
    if wanted == found:
        return
    faults = [f'{p} is missing' for p in wanted.keys() - found.keys()]
    faults += [f'{p} is not in the config' for p in found.keys() - wanted.keys()]
    faults += [
        f'{p} has shape {found[p]}, the config says {wanted[p]}'
        for p in wanted.keys() & found.keys() if wanted[p] != found[p]
    ]
    shown = '; '.join(sorted(faults)[:6]) + ('; ...' if len(faults) > 6 else '')
    raise ValueError(
        f'{where}: params and config disagree in {len(faults)} leaves: {shown}. '
        'After surgery on params use cfg.fit(params).'
    )


@contextlib.contextmanager
def guard_space(folder: Path, size: int, what: str) -> Iterator[None]:
    """Raise DiskFull, naming bytes needed and free, before or when `folder` runs out of space."""
    needed = size + size // 20 + SLACK

    def check() -> None:
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise DiskFull(f'{what} needs {needed:,} bytes and {folder} has {free:,} free')

    processes.first(check)
    try:
        yield
    except Exception as error:
        if getattr(error, 'errno', None) != errno.ENOSPC and 'No space left' not in str(error):
            raise
        free = shutil.disk_usage(folder).free
        raise DiskFull(
            f'{what} needs {needed:,} bytes; {folder} ran full while writing ({free:,} free now)'
        ) from error


def _check_ours(path: Path) -> None:
    try:
        known = json.loads((path / 'lineage.json').read_text())['format'] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    files = all((path / name).is_file() for name in ('config.json', 'manifest.json'))
    if not (known and files):
        raise ValueError(
            f'{path}: not a moe-jax model folder (config.json, manifest.json, params/ and '
            f'lineage.json of format {FORMAT!r})'
        )


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under a folder, by its relative path."""
    digests = {}
    for path in sorted(folder.rglob('*')):
        if path.is_file():
            with open(path, 'rb') as file:
                name = path.relative_to(folder).as_posix()
                digests[name] = hashlib.file_digest(file, 'sha256').hexdigest()
    return digests


def _check_files(path: Path) -> None:
    wanted = json.loads((path / 'manifest.json').read_text())
    found = _digests(path / 'params')
    faults = [
        f'{name} is {"missing" if name not in found else "damaged"}'
        for name, digest in wanted.items() if found.get(name) != digest
    ]
    if faults:
        raise ValueError(f'{path}/params: {"; ".join(faults[:4])}; copy the model again')


def check_target(path: Path, overwrite: bool, check_ours: Callable[[Path], None]) -> None:
    """Refuse to write where something is, unless it is ours and may be overwritten."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f'{path}: exists and is not empty; choose another path or overwrite')
    check_ours(path)


def swap(temporary: Path, path: Path) -> None:
    """Rename into place; an old model steps aside first and is deleted last."""
    if not path.exists():
        temporary.rename(path)
        return
    old = path.parent / f'.{path.name}.{secrets.token_hex(4)}.old'
    path.rename(old)
    temporary.rename(path)
    shutil.rmtree(old)
