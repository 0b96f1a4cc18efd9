"""Models on disk: folders that are whole or absent, and notice damage.

config.json    the Config
lineage.json   where the model came from, as its maker told
params/        the arrays, written by orbax
manifest.json  the SHA-256 of every file: orbax itself reads a flipped bit without a sign
"""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from moe_jax.base import processes
from moe_jax.base.files import differing, digests, replacing_folder
from moe_jax.base.narrowing import warn_of_computing
from moe_jax.base.sharding import Placing
from moe_jax.base.signals import unbroken
from moe_jax.base.tree import Params, count_bytes, map_with_path
from moe_jax.config import Config
from moe_jax.hf.shards import inside, listed, read_json
from moe_jax.model import decoder
from moe_jax.model.params import check_params
from moe_jax.storage import narrowed

FORMAT = 'moe-jax 1'
CONFIG, MANIFEST = 'config.json', 'manifest.json'
WHOLE = 'folder'  # key of the digests of all files; older manifests hold those of params/ alone


def save(
    path: str | Path,
    cfg: Config,
    params: Params,
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
    check_params(cfg, params, str(path))
    head = json.dumps({'format': FORMAT, 'lineage': dict(lineage or {})}, indent=1, sort_keys=True)

    def rest(temporary: Path) -> None:
        (temporary / 'config.json').write_text(cfg.to_json())
        (temporary / 'lineage.json').write_text(head)
        if beside is not None:
            beside(temporary)
        manifest = json.dumps({WHOLE: digests(temporary)}, indent=1, sort_keys=True)
        (temporary / MANIFEST).write_text(manifest)

    with replacing_folder(path, _check_ours, size=count_bytes(params),
                          what=f'saving the model {path}', overwrite=overwrite) as temporary:
        with unbroken(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
            writer.save(temporary / 'params', args=ocp.args.StandardSave(dict(params)))
        processes.first(lambda: rest(temporary))


def load(
    path: str | Path, *, dtype: str | None = None, place: Placing | None = None
) -> tuple[Config, decoder.Params]:
    """Config and parameters of a model folder, bit for bit as saved.

    dtype: cast everything but the routers, and compute in it; ValueError where a finite number
    would become infinite, and a logged line where some become zero. place: the sharding of a leaf,
    by path and shape (None: the first device).
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
        if narrowed.any_narrows(stored.tree, wanted):
            params = narrowed.restore(path, path / 'params', stored.tree, wanted)
        else:
            params = reader.restore(path / 'params', args=ocp.args.StandardRestore(wanted))
    cfg = cfg if dtype is None else cfg.replace(dtype=dtype)
    warn_of_computing(path, params, cfg.dtype)
    return cfg, params


def read_config(path: Path) -> Config:
    """The Config of a model folder; ValueError where its config.json is not one."""
    config = inside(path, CONFIG)
    _check_files(path, (CONFIG,))
    try:
        return Config.from_json(config.read_text())
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f'{path}/config.json: not a moe-jax config: {error}') from error


def load_lineage(path: str | Path) -> dict[str, Any]:
    """What `save` was told about where the model came from; {} if nothing."""
    path = Path(path).absolute()
    _check_ours(path)
    return json.loads((path / 'lineage.json').read_text())['lineage']


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


def _check_files(path: Path, only: Collection[str] | None = None) -> None:
    """Hold every file that was noted when the model was saved, or those named, against that note.

    Files that came later, such as a plan, are none of them.
    """
    if not (path / MANIFEST).is_file():
        return
    noted = read_json(path / MANIFEST)
    wanted = noted.get(WHOLE)
    if not isinstance(wanted, dict):
        wanted = {f'params/{name}': digest for name, digest in noted.items()}
    faults = differing(path, {
        name: digest for name, digest in wanted.items() if only is None or name in only})
    if faults:
        raise ValueError(f'{path}: {listed(faults)}; copy the model again, or, if you changed a '
                         f'file yourself, delete its line from {MANIFEST}')
