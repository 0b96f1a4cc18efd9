"""Append-only JSONL records of finished cells, and the lock that keeps one writer to a folder."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FILE = 'records.jsonl'
LOCK = '.lock'


class Busy(RuntimeError):
    """Another process is running the study in this folder."""


def read(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Records by id, the last of each; a torn last line (a killed writer) is ignored."""
    path = Path(folder) / FILE
    if not path.exists():
        return {}
    records = {}
    lines = path.read_bytes().split(b'\n')
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            if number == len(lines):
                break
            raise ValueError(f'{path}:{number}: not JSON; the file was edited or damaged. Remove '
                             'that line to redo its cell') from None
        records[record['id']] = record
    return records


def append(folder: str | Path, record: Mapping[str, Any]) -> None:
    """Add one record and wait until it is on disk; first drops a torn last line."""
    path = Path(folder) / FILE
    line = json.dumps(record, sort_keys=True, separators=(',', ':'), allow_nan=False) + '\n'
    with path.open('ab+') as file:
        _drop_torn(file)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def _drop_torn(file: Any) -> None:
    end = file.seek(0, os.SEEK_END)
    if not end:
        return
    file.seek(end - 1)
    if file.read(1) == b'\n':
        return
    file.seek(0)
    file.truncate(file.read().rfind(b'\n') + 1)


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold a folder's lock; the kernel frees it when the process dies, however it dies."""
    path = Path(folder) / LOCK
    with path.open('a+') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or 'unknown'
            raise Busy(f'{folder}: process {owner} is running this study; wait for it, stop it, or '
                       'choose another folder with --out') from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
