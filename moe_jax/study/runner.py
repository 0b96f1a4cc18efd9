"""Run or resume a study: finished cells are kept, the others are computed in order."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from moe_jax.base import signals
from moe_jax.study import material, records
from moe_jax.study.cell import Cell
from moe_jax.study.expert_count.spec import Study
from moe_jax.study.kinds import kind_of
from moe_jax.study.progress import Display
from moe_jax.study.recovery.spec import RecoveryStudy
from moe_jax.study.workshop import Workshop

# Compiled programs are memory maps, of which a process may have 65,530 on Linux; about 150 cells of
# different models filled them. Slow compilations come back from the cache on disk.
PROGRAMS_OF = 32


class OtherStudy(ValueError):
    """The output folder that holds something else."""


def run(
    study: Study | RecoveryStudy, folder: str | Path, *,
    data_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """Compute every cell that `folder` does not hold yet; returns the path of the records.

    Cells are identified by the hash of their inputs, so a study that was killed goes on, and one
    whose seeds or tasks grew reuses what still holds. Raises OtherStudy when the folder holds
    anything else, records.Busy when another process is at work in it, and what `check` raises,
    all before anything is fetched. SIGTERM and Ctrl-C raise Interrupted with the state saved where
    a model trains, else SIGTERM raises it, and Ctrl-C KeyboardInterrupt, at once.
    """
    kind = kind_of(study)
    kind.check(study, data_dir)
    folder = Path(folder).expanduser().absolute()
    _refuse_files(folder)
    with records.locked(folder), Display(study.name) as display, _stoppable(display) as check_stop:
        done = records.read(folder)
        _refuse_other(folder, done, study.name)
        display.console.print(kind.cost(study))
        display.say('fetching and encoding text')
        stuff = material.prepare(study, data_dir)
        todo = kind.cells(study, stuff)
        _append_if_new(folder, done, kind.description(study, stuff, todo))

        def advance(title: str, work: float, found: float, metrics: dict[str, Any]) -> None:
            check_stop()
            display.advance(title, work, found, metrics)

        models = {(c.about['experts'], c.about['seed']): c for c in todo if c.kind == 'pretrain'}
        shop = Workshop(study, stuff, folder, models, advance)
        display.plan(sum(c.work for c in todo), len(todo))
        left, computed = unfinished(shop, todo, done), 0
        for cell in todo:
            if cell.id in left:
                _compute(shop, cell, display)
                check_stop()
                computed += 1
                if computed % PROGRAMS_OF == 0:
                    jax.clear_caches()
            else:
                _append_if_new(folder, done, {**done[cell.id], **cell.about})  # a label may be new
                display.skip(cell.work)
    return folder / records.FILE


def unfinished(shop: Workshop, todo: list[Cell], done: Mapping[str, Any]) -> set[str]:
    """Ids of the cells to compute: those without a record, and missing models that they need."""
    left = {cell.id for cell in todo if cell.id not in done}
    needed = {cell.parent for cell in todo if cell.id in left}
    return left | {cell.id for cell in shop.pretrained.values()
                   if cell.id in needed and not shop.model_folder(cell).is_dir()}


def _refuse_files(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OtherStudy(f'{folder} is a file; give a folder with --out')
    names = {path.name for path in folder.iterdir()}
    if names - {records.LOCK} and records.FILE not in names:
        raise OtherStudy(f'{folder} is not empty and holds no study; give another folder with '
                         '--out')


def _refuse_other(folder: Path, done: Mapping[str, Any], name: str) -> None:
    if not done:
        return
    other = done.get('study', {}).get('outputs', {}).get('name')
    if other != name:
        raise OtherStudy(f'{folder} holds the study {other!r}, not {name!r}; give another folder '
                         'with --out')


@contextlib.contextmanager
def _stoppable(display: Display) -> Iterator[Callable[[], None]]:
    """Stop at once on a signal, with a message about what is kept.

    The training loop handles signals itself. Between two loops nothing is half done, so there
    SIGTERM and Ctrl-C raise at once.
    """
    with signals.raising() as check_stop:
        try:
            yield check_stop
        except (KeyboardInterrupt, signals.Interrupted):
            display.say(f'stopped; {display.finished} of {display.cells or "the"} cells are '
                        'finished and kept, and the same command goes on from there')
            raise


def _append_if_new(folder: Path, done: Mapping[str, Any], record: dict[str, Any]) -> None:
    if done.get(record['id']) != json.loads(json.dumps(record)):
        records.append(folder, record)


def _compute(shop: Workshop, cell: Cell, display: Display) -> None:
    display.begin(cell.title, cell.work)
    start = time.perf_counter()
    try:
        outputs = kind_of(shop.study).compute[cell.kind](shop, cell)
        seconds = round(time.perf_counter() - start, 2)
        records.append(shop.folder, {'id': cell.id, 'kind': cell.kind, **cell.about,
                                     'seconds': seconds, 'outputs': outputs})
    except Exception as error:
        error.add_note(f'in the cell {cell.title}')
        raise
    display.finish(cell.title, seconds)
