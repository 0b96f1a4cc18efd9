"""The cache folder, where fetched and derived files live."""

import os
from pathlib import Path


def place() -> Path:
    """The cache folder, there or not: $MOE_JAX_CACHE, else moe-jax in $XDG_CACHE_HOME or ~/.cache.
    """
    chosen = os.environ.get('MOE_JAX_CACHE')
    parent = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(chosen or Path(parent) / 'moe-jax').expanduser().absolute()


def root() -> Path:
    """The cache folder, made if new.

    Raises OSError naming the folder and the variable when it cannot be made or written.
    """
    path = place()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f'cache folder {path} cannot be made ({error.strerror}); '
                      f'set MOE_JAX_CACHE to a folder you can write') from error
    if not os.access(path, os.W_OK):
        raise OSError(f'cache folder {path} cannot be written; '
                      f'set MOE_JAX_CACHE to a folder you can write')
    return path
