"""A lock file that one process holds, for as long as it lives.

`filelock` takes the kernel's lock of the file (flock; on Linux NFS, a lock at the server that other
machines see). The kernel frees it however the process dies, `kill -9` included; the file stays,
with what its holder wrote into it. On the rare file system without such locks filelock warns and
has the file's existence stand for the lock: there a killed process leaves it behind.
"""

from pathlib import Path

import filelock


class Held(Exception):
    """Another process, or another lock of this one, holds the file."""


def claim(path: Path) -> filelock.BaseFileLock:
    """Take the lock of a file, which is made if there is none; raises Held, and never waits.

    The thread that took it gives it back with `release`.
    """
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise Held(f'{path} is locked') from None
    return lock
