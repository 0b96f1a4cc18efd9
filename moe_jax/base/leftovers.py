"""Temporary siblings of what is being written: whose they are, and their sweeping once it is gone.

A temporary is named '.NAME.' + the host + a random part + its suffix, and locked by the process
that writes it for as long as that lives. What the same host left behind, unlocked, is swept by the
next run that writes NAME in that folder; an older version that stepped aside for a new one which
never came is put back.
"""

import contextlib
import hashlib
import logging
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is known of owners, and nothing is swept
    fcntl = None

log = logging.getLogger('moe_jax')

HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
YOUNG = 60  # seconds in which a temporary may be made and not locked yet
NEW, OLD = '.tmp', '.old'  # and a file's own suffix after it


def sibling(path: Path, suffix: str) -> Path:
    """A path beside `path` that nobody has, for something temporary."""
    return path.with_name(f'.{path.name}.{HOST}{secrets.token_hex(4)}{suffix}')


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Lock a file or folder for as long as the block, or this process, lives."""
    number = os.open(path, os.O_RDONLY)
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks: nobody can sweep it
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(number)


def sweep(path: Path) -> None:
    """Remove what runs that were killed left beside `path`, or put back what had stepped aside."""
    if not path.parent.is_dir():
        return
    temporary = re.compile(
        rf'{re.escape(f".{path.name}.{HOST}")}[0-9a-f]{{8}}({NEW}({re.escape(path.suffix)})?|{OLD})')
    for entry in sorted(path.parent.iterdir()):
        if not temporary.fullmatch(entry.name) or not _is_abandoned(entry):
            continue
        if entry.name.endswith(OLD) and not path.exists():
            entry.rename(path)
            log.warning('%s: put back; a run was killed before the new one was in its place', path)
        elif entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    """Whether nobody holds it, and nobody is just about to."""
    try:
        if fcntl is None or time.time() - path.stat().st_ctime < YOUNG:
            return False
        number = os.open(path, os.O_RDONLY)
    except OSError:  # gone meanwhile, or not ours to look at
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(number)
    return True
