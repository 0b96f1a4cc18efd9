"""Append-only JSONL records of finished cells, and the lock that keeps one writer to a folder."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from moe_jax.base import lock
from moe_jax.base.files import guard_space

FILE = 'records.jsonl'
LOCK = '.lock'


class Busy(RuntimeError):
    """Another process that runs the study in this folder."""


def read(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Records by id, the last of each; a last line without its end (a killed writer) is none."""
    path = Path(folder) / FILE
    if not path.exists():
        return {}
    records = {}
    for number, line in enumerate(path.read_bytes().split(b'\n')[:-1], 1):
        try:
            record = json.loads(line)
            records[record['id']] = record
        except (ValueError, TypeError, KeyError):
            raise ValueError(f'{path}:{number}: not a record; the file was edited or damaged. '
                             'Remove that line to redo its cell') from None
    return records


def append(folder: str | Path, record: Mapping[str, Any]) -> None:
    """Add one record and wait until it is on disk; first drops a torn last line.

    Raises DiskFull, or ValueError for numbers that are not finite; at most a torn line remains.
    """
    path = Path(folder) / FILE
    try:
        text = json.dumps(record, sort_keys=True, separators=(',', ':'), allow_nan=False) + '\n'
    except ValueError as error:
        raise ValueError(f'record {record["id"]}: {error}; a loss or score is not finite') from None
    line = text.encode()
    with guard_space(path.parent, len(line), f'adding to {path}'), path.open('ab+') as file:
        _drop_torn(file)
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _drop_torn(file: BinaryIO) -> None:
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
    """Make a folder and hold its lock, with the process's number in it; freed when that dies.

    Raises Busy when another process holds it, OSError when the folder cannot be written.
    """
    path = Path(folder) / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        claimed = lock.claim(path)
    except lock.Held:
        owner = path.read_text().strip() or 'unknown'
        raise Busy(f'{folder}: process {owner} is running this study; wait for it, stop it, or '
                   'choose another folder with --out') from None
    except OSError as error:
        raise OSError(error.errno, f'{error.strerror}: no study can be written there; give another '
                      'folder with --out', str(folder)) from error
    try:
        path.write_text(str(os.getpid()))
        yield
    finally:
        claimed.release()
