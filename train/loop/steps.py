"""The checkpoints of a run on disk: whether a step's files are those that were written.

Orbax and TensorStore read a flipped bit without a sign. So a step that is complete gets a seal: the
file `seal.json` with its number and the SHA-256 of each of its files. A resume takes the newest
step that holds what its seal says.
"""

import hashlib
import json
import logging
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from moe_jax.base.files import digests, write

SEAL = 'seal.json'
DAMAGED = 'damaged'  # the folder for steps that a run did not go on from
EMPTY = hashlib.sha256().hexdigest()  # copies by object stores leave empty files behind

log = logging.getLogger(__name__)


class Newest(NamedTuple):
    """The newest whole step (0: there is none), and what is wrong with each newer one."""

    step: int
    damaged: dict[int, str]


def seal(checkpoints: Path, step: int) -> None:
    """Record what the files of a complete step hold; the last thing that is written of it."""
    folder = checkpoints / str(step)
    write(folder / SEAL, json.dumps({'step': step, 'files': digests(folder)}, indent=1))


def newest(checkpoints: Path) -> Newest:
    """The newest step that holds what its seal says.

    Where no step has a seal, which older versions did not write, the newest one is taken as it is,
    with a warning. Raises ValueError where there are steps and none of them is whole.
    """
    faults, unsealed = {}, []
    for step in steps(checkpoints):
        if not (checkpoints / str(step) / SEAL).is_file():
            unsealed.append(step)
            faults[step] = f'{SEAL} is missing, so its files cannot be checked'
        elif (fault := _fault(checkpoints / str(step), step)) is None:
            return Newest(step, faults)
        else:
            faults[step] = fault
    if len(unsealed) < len(faults):
        listed = '; '.join(f'step {step}: {fault}' for step, fault in list(faults.items())[:3])
        raise ValueError(f'{checkpoints}: no checkpoint is whole ({listed}). Copy the folder again '
                         'from where it is whole, or choose another folder to start anew')
    if unsealed:
        log.warning('%s: step %d has no %s (an older version wrote it, or its writer was killed '
                    'just then); it is taken without a check', checkpoints, unsealed[0], SEAL)
    return Newest(max(unsealed, default=0), {})


def set_aside(checkpoints: Path, damaged: Iterable[int]) -> None:
    """Move damaged steps out of the way of the steps that will be written again."""
    for step in damaged:
        aside = checkpoints.parent / DAMAGED / f'step-{step}-{secrets.token_hex(4)}'
        aside.parent.mkdir(exist_ok=True)
        (checkpoints / str(step)).rename(aside)
        log.warning('step %d now lies in %s, which may be deleted', step, aside)


def steps(checkpoints: Path) -> list[int]:
    """The numbers of all steps in a folder, the newest first."""
    if not checkpoints.is_dir():
        return []
    names = [path.name for path in checkpoints.iterdir() if path.is_dir()]
    return sorted((int(name) for name in names
                   if name.isascii() and name.isdigit() and str(int(name)) == name), reverse=True)


def warn(checkpoints: Path, newest: Newest) -> None:
    """Log every step that is passed over."""
    for step, fault in newest.damaged.items():
        log.warning('%s: step %d is passed over: %s; the newest whole step is %d', checkpoints,
                    step, fault, newest.step)


def _fault(folder: Path, step: int) -> str | None:
    """What is wrong with a sealed step; None if nothing is."""
    try:
        sealed = json.loads((folder / SEAL).read_text())
        number, files = sealed['step'], dict(sealed['files'])
    except (OSError, ValueError, KeyError, TypeError):
        return f'{SEAL} is damaged'
    if number != step:
        return f'its files are those of step {number}'
    present = digests(folder)
    faults = [f'{name} is {"missing" if name not in present else "damaged"}'
              for name, digest in sorted(files.items())
              if present.get(name, EMPTY) != digest]
    more = f' (and {len(faults) - 1} more files)' if len(faults) > 1 else ''
    return faults[0] + more if faults else None
