"""The folder of a model as people name it: a folder here, or a model of the Hugging Face hub.

A hub id (org/name) is fetched into the hub's own cache: its config first and, where that is of a
model that loads, safetensors and tokenizer; never code, never pickled weights.
"""

import functools
import logging
import re
from pathlib import Path

from moe_jax.hf.folder import CODE, KEPT
from moe_jax.hf.layout import CONFIG, read_config
from moe_jax.hf.naming import MERGE
from moe_jax.hf.shards import INDEX, SINGLE

log = logging.getLogger('moe_jax')
ADAPTER = 'adapter_config.json'
HUB_ID = re.compile(r'[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*')
FIRST = CONFIG, ADAPTER
REST = ('*.safetensors', INDEX, *KEPT)
LEFT = ('*/*', 'consolidated*', *(f'*{suffix}' for suffix in CODE))


def located(model: str | Path) -> Path:
    """The folder of a model; a hub id that is no folder here is fetched first.

    Raises FileNotFoundError where there is neither, and ValueError for a file, and for a folder
    with an adapter in place of a model.
    """
    path = Path(model)
    if not path.exists():
        path = _fetched(_hub_id(path))
    if not path.is_dir():
        raise ValueError(f'{path}: is no folder; give the folder of a model')
    _check_adapter(path, path)
    return path


def _hub_id(path: Path) -> str:
    """The hub id that a path which does not exist can be; FileNotFoundError for any other."""
    if HUB_ID.fullmatch(path.as_posix()) is None:
        raise FileNotFoundError(f'{path}: no such folder')
    if path.parent.exists():
        raise FileNotFoundError(f'{path}: no such folder (it is not looked for on the hub, because '
                                f'{path.parent} is here)')
    return path.as_posix()


@functools.cache
def _fetched(name: str) -> Path:
    """The folder of a hub's model in the hub's cache; asked for once in a process."""
    log.info('%s: no such folder here; looked for on the Hugging Face hub', name)
    folder = _snapshot(name, FIRST)
    _check_adapter(folder, name)
    if (folder / CONFIG).is_file():
        read_config(folder)  # what does not load is not fetched
    return _snapshot(name, FIRST + REST)


def _snapshot(name: str, patterns: tuple[str, ...]) -> Path:
    """Files of a model in the hub's cache; FileNotFoundError where they cannot be had."""
    fault = f'{name}: no such folder, and as the id of a model on the Hugging Face hub it'
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FileNotFoundError(f'{fault} needs huggingface_hub, which downloads it: pip install '
                                'huggingface_hub') from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns),
                                      ignore_patterns=list(LEFT)))
    except Exception as error:  # of the hub, of connections, of disks: several libraries'
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:160]
        raise FileNotFoundError(
            f'{fault} could not be downloaded ({reason}). Give the path of a folder; or download '
            f'it with huggingface_hub.snapshot_download({name!r}) where there is a network, and '
            'give the folder that returns') from error


def _check_adapter(folder: Path, name: str | Path) -> None:
    """Refuse an adapter without its model, and say that one beside a model is not used."""
    if not (folder / ADAPTER).exists():
        return
    if not any((folder / part).exists() for part in (SINGLE, INDEX, 'params')):
        raise ValueError(f'{name}: holds an adapter ({ADAPTER}) and no model; {MERGE}')
    log.info('%s: the weights are taken without the adapter beside them (%s)', name, ADAPTER)
