"""Any model folder, native or a Hugging Face checkpoint, by its path alone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from moe_jax.base.sharding import placing
from moe_jax.base.tree import Params
from moe_jax.config import Config
from moe_jax.hf import layout
from moe_jax.hf import load as hf_load
from moe_jax.hf.folder import SUBFOLDER, SideFiles, is_hf
from moe_jax.hf.hub import located
from moe_jax.storage import native


def load(
    path: str | Path,
    *,
    dtype: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Config, Params]:
    """Config and parameters of a model folder, native or of Hugging Face transformers.

    path: the folder, or the id of a model on the Hugging Face hub (org/name), which is fetched into
    the hub's cache. dtype: 'float32', 'bfloat16' or 'float16', to cast all but the routers to and
    to compute in (None: as stored); a finite number beyond that dtype is refused, and the log says
    how many become zero. mesh: spread the leaves by `sharding.RULES`; each device's share is read
    by itself (None: all on the first device). progress is called with the bytes of each leaf of a
    Hugging Face checkpoint. Peak memory is the model plus one leaf; the log ('moe_jax', INFO) says
    both before anything is allocated. Raises ValueError with everything that is wrong with a
    folder, FileNotFoundError where there is none.
    """
    path = located(path)
    place = None if mesh is None else placing(mesh)
    if is_hf(path):
        return hf_load.load(hf_load.open_folder(path, dtype), place, progress)
    return native.load(path, dtype=dtype, place=place)


def config_of(path: str | Path) -> Config:
    """The Config of a model folder, without looking at weights."""
    path = located(path)
    return layout.read_config(path)[0] if is_hf(path) else native.read_config(path)


def save(
    path: str | Path,
    cfg: Config,
    params: Params,
    lineage: Mapping[str, Any] | None = None,
    *,
    like: str | Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write a native model folder, whole or not at all.

    lineage: anything JSON can hold about where the model came from. like: the folder of
    transformers the model came from, or a native one converted from it: its config.json, tokenizer
    and generation config are kept in the subfolder hf, so that `export_hf(..., like=path)` works
    without the original. A path that exists is refused, unless it is an empty folder, or a model
    folder of ours and `overwrite` is set.
    """
    side = None if like is None else SideFiles.of(located(like))

    def beside(folder: Path) -> None:
        if side is None:
            return
        (folder / SUBFOLDER).mkdir()
        side.copy(folder / SUBFOLDER)
        (folder / SUBFOLDER / layout.CONFIG).write_bytes((side.folder / layout.CONFIG).read_bytes())

    native.save(path, cfg, params, lineage, beside=beside, overwrite=overwrite)


def origin(path: str | Path) -> Path | None:
    """The folder to export like: this one if it is of transformers or came from one, else None."""
    path = Path(path)
    return path if is_hf(path) or (path / SUBFOLDER / layout.CONFIG).is_file() else None


def side_file(path: str | Path, name: str) -> Path | None:
    """A file beside the weights, such as tokenizer.json, wherever the folder keeps it."""
    for folder in (Path(path), Path(path) / SUBFOLDER):
        if (folder / name).is_file():
            return folder / name
    return None
