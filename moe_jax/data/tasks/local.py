"""Tasks from a folder of the user's own `train` and `validation` files, Parquet or JSON lines."""

import os
import re
from pathlib import Path

from moe_jax.data.tasks import superglue_rows
from moe_jax.data.tasks.example import Example, Task
from moe_jax.data.tasks.tables import read_rows

# A file belongs to a part by the start of its name: train-00000-of-00002.parquet, val.jsonl.
PARTS = {'train': r'train', 'validation': r'(validation|valid|val|dev)'}
SUFFIXES = ('.parquet', '.jsonl', '.json')


def part_files(folder: Path, part: str) -> list[Path]:
    """The files of one part, in name order."""
    pattern = re.compile(PARTS[part] + r'([-_.].*)?')
    return sorted(path for path in folder.iterdir()
                  if path.suffix in SUFFIXES and pattern.fullmatch(path.stem))


def overlap_note(train: tuple[Example, ...], validation: tuple[Example, ...]) -> str:
    """A sentence for a report: how many validation examples share their group with training."""
    known = {example.group for example in train}
    shared = sum(example.group in known for example in validation)
    return f'{shared} of {len(validation)} validation examples share a passage with training'


def task_folder(name: str, data_dir: str | os.PathLike) -> Path:
    """The folder in `data_dir` of the task's name, in any case (BoolQ), else `data_dir`."""
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder}: no such folder; task {name!r} needs train and '
                                f'validation files in it (.parquet or .jsonl)')
    named = [inner for inner in sorted(folder.iterdir())
             if inner.is_dir() and inner.name.lower() == name.lower()]
    return named[0] if named else folder


def has_files(name: str, data_dir: str | os.PathLike) -> bool:
    """Whether the folder holds a file of any part of the task."""
    folder = task_folder(name, data_dir)
    return any(part_files(folder, part) for part in PARTS)


def load(name: str, data_dir: str | os.PathLike) -> Task:
    """Task `name` from the files of `data_dir/name`, or of `data_dir` if that is not a folder.

    The columns are those published for `name` (superglue_rows.ROWS), or for any other name
    {context, choices, label, group?}. The folder's own split is kept.
    """
    folder = task_folder(name, data_dir)
    parts = {}
    for part in PARTS:
        files = part_files(folder, part)
        if not files:
            present = sorted(path.name for path in folder.iterdir())
            raise FileNotFoundError(f'{folder}: no {part} file for task {name!r}; name it '
                                    f'{part}.parquet or {part}.jsonl; found {present}')
        parts[part] = tuple(
            example for number, path in enumerate(files)
            for example in superglue_rows.examples(name, read_rows(path), str(path),
                                                   part if number == 0 else f'{part}{number}'))
    note = f'the given train and validation files; {overlap_note(**parts)}'
    return Task(name, parts['train'], parts['validation'], note, str(folder))
