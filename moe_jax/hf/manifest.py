"""What our export noted of the files of a folder, and whether they are still the same."""

from collections.abc import Collection, Mapping
from pathlib import Path

from moe_jax.base import files
from moe_jax.hf.shards import listed, read_json

MANIFEST = 'moe_jax.json'
SHA256 = 'sha256'
LEGAL = ('LICENSE', 'NOTICE', 'USE_POLICY')  # texts that decide nothing


def digests(folder: Path, known: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of every file of a folder that decides how the model computes, by name.

    known: those that were taken while the files were written.
    """
    rest = {file.name for file in folder.iterdir()
            if file.name not in known and not file.name.startswith(LEGAL)}
    return {**known, **files.digests(folder, rest)}


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
    faults = files.differing(folder, {
        name: digest for name, digest in wanted.items() if only is None or name in only})
    if faults:
        raise ValueError(f'{folder}: damaged since it was exported: {listed(faults)}. Copy it '
                         f'again; if you changed a file yourself, delete its line from {MANIFEST}')
