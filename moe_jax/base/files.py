"""Files and folders that are whole or absent: temporary siblings, then a rename."""

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from moe_jax.base import processes

SLACK = 1 << 20  # bytes of metadata next to the arrays


class DiskFull(OSError):
    """Too little free space for a save; what was there before is untouched."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.ENOSPC, message)


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
