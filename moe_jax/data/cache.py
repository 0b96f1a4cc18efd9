"""Where fetched and derived files live, and how a file comes to be there all at once."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
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


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a temporary sibling to write, which becomes `path` only if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.stem}-', suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open('rb') as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp gives 0600, which hides a shared cache
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
