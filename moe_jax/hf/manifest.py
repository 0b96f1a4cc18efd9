"""What our export noted of the files of a folder, and whether they are still the same."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

from moe_jax.hf.shards import listed, read_json

MANIFEST = 'moe_jax.json'
SHA256 = 'sha256'
LEGAL = ('LICENSE', 'NOTICE', 'USE_POLICY')  # texts that decide nothing


def digests(folder: Path, known: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of every file of a folder that decides how the model computes, by name.

    known: those that were taken while the files were written.
    """
    rest = {file.name: _digest(file) for file in sorted(folder.iterdir())
            if file.is_file() and file.name not in known and not file.name.startswith(LEGAL)}
    return {**known, **rest}


def check_digests(folder: Path, only: Collection[str] | None = None) -> None:
    """Hold the files that our export noted, or those named, against it; ValueError if one differs.

    Says nothing of a folder without a manifest, and of files that an older version did not note.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return
    wanted = read_json(path).get(SHA256)
    if not isinstance(wanted, dict):
        raise ValueError(f'{path}: has no sha256 of the files; delete it if it is not of moe-jax')
    faults = []
    for name, digest in wanted.items():
        if only is not None and name not in only:
            continue
        if Path(name).name != name or not (folder / name).is_file():
            faults.append(f'{name} is missing')
        elif _digest(folder / name) != digest:
            faults.append(f'{name} differs')
    if faults:
        raise ValueError(f'{folder}: damaged since it was exported: {listed(faults)}. Copy it '
                         f'again; if you changed a file yourself, delete its line from {MANIFEST}')


def _digest(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
