"""Files and folders that are whole or absent: temporary siblings, then a rename.

    with replacing(path) as temporary:              a file
    with replacing_folder(path, ...) as temporary:  a folder
    write(path, text)                               a file whose content is at hand
    point(link, target)                             a symbolic link
    digests(folder)                                 SHA-256 of every file
    differing(folder, digests)                      what changed since

Each of these leaves what was there before until the new one is complete, and no trace of the new
one where the block fails.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from moe_jax.base import leftovers, processes

TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
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


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary sibling file to write, which becomes `path` only if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    leftovers.sweep(path)
    # With its suffix, or numpy would add one.
    temporary = leftovers.sibling(path, leftovers.NEW + path.suffix)
    try:
        temporary.touch(exist_ok=False)
        with leftovers.held(temporary):
            yield temporary
            sync(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(
    path: Path, check_ours: Callable[[Path], None], *, size: int, what: str,
    overwrite: bool = False,
) -> Iterator[Path]:
    """A temporary sibling folder to fill, which becomes `path` only if the block succeeds.

    What is at `path` is refused with FileExistsError, unless it is an empty folder, or `overwrite`
    is set and `check_ours`, which raises for a folder that somebody else made, lets it pass; it
    steps aside for the new one and is deleted last. So is what appears there meanwhile. size: bytes
    that the block will write; DiskFull says that `what` does not fit. Several processes enter
    together: the first one makes, renames and removes, all get the same temporary folder.
    """
    processes.first(lambda: leftovers.sweep(path))
    processes.first(lambda: _check_target(path, overwrite, check_ours))
    # All processes take the first one's name: hosts and random parts differ.
    own = leftovers.sibling(path, leftovers.NEW).name
    temporary = path.parent / processes.same_text(own)
    processes.first(lambda: path.parent.mkdir(parents=True, exist_ok=True))
    try:
        with guard_space(path.parent, size, what):
            processes.first(temporary.mkdir)
            with leftovers.held(temporary) if processes.is_first() else contextlib.nullcontext():
                yield temporary
                processes.first(lambda: _swap(temporary, path, check_ours if overwrite else None))
    finally:
        if processes.is_first():
            shutil.rmtree(temporary, ignore_errors=True)


def write(path: Path, content: str | bytes) -> None:
    """Write a whole file or none; an OSError names it, as that of a full disk does not."""
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def point(link: Path, target: Path) -> None:
    """Make or replace a symbolic link to `target`, relative to the link's folder."""
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f'.{link.name}.{secrets.token_hex(4)}')
    try:
        temporary.symlink_to(os.path.relpath(target, link.parent))
        temporary.replace(link)
    finally:
        temporary.unlink(missing_ok=True)


def digests(folder: Path, only: Collection[str] | None = None) -> dict[str, str]:
    """SHA-256 of every file under a folder, or of those named, by its relative path."""
    by_name = {}
    for path in sorted(folder.rglob('*')):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and (only is None or name in only):
            with open(path, 'rb') as file:
                by_name[name] = hashlib.file_digest(file, 'sha256').hexdigest()
    return by_name


def differing(folder: Path, noted: Mapping[str, str]) -> list[str]:
    """Which of the files whose SHA-256 was noted are missing or differ, in words."""
    present = digests(folder, noted)
    return [f'{name} {"differs" if name in present else "is missing"}'
            for name, digest in noted.items() if present.get(name) != digest]


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open('ab') as file:
        os.fsync(file.fileno())


def _check_target(path: Path, overwrite: bool, check_ours: Callable[[Path], None]) -> None:
    """Refuse to write where something is, unless it is ours and may be overwritten."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f'{path}: exists and is not empty; choose another path or overwrite')
    check_ours(path)


def _swap(temporary: Path, path: Path, check_ours: Callable[[Path], None] | None) -> None:
    """Rename into place; with `check_ours` an old folder steps aside first and is deleted last.

    The rename itself refuses what is there, unless it is an empty folder, so that of several
    processes that write one path one succeeds.
    """
    while True:
        try:
            temporary.rename(path)
            return
        except OSError as error:
            if error.errno not in TAKEN:
                raise
            if check_ours is None:
                raise FileExistsError(
                    f'{path}: appeared while this one was being written, and is left as it is; '
                    'choose another path or overwrite') from error
        try:
            check_ours(path)
        except (OSError, ValueError):
            if path.exists():
                raise
            continue  # another that writes it has moved it aside meanwhile
        old = leftovers.sibling(path, leftovers.OLD)
        with contextlib.suppress(FileNotFoundError), leftovers.held(path):
            path.rename(old)
            try:
                temporary.rename(path)
            except OSError as error:
                if error.errno not in TAKEN:
                    old.rename(path)
                    raise
                shutil.rmtree(old)
                continue  # another has put its own there: that one is older now
            shutil.rmtree(old)
            return
