"""Run a study, or go on with it: finished cells are kept, the others computed in order."""

import json
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from moe_jax.study import material, records
from moe_jax.study.cells import Cell, cells, stage_options
from moe_jax.study.compute import COMPUTE, Workshop
from moe_jax.study.progress import Display
from moe_jax.study.spec import Study

IDENTITY = 'study.json'
PACKAGES = ('moe-jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy', 'scipy', 'tokenizers')


class OtherStudy(ValueError):
    """The output folder holds something else."""


def run(study: Study, folder: str | Path, *, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Compute every cell that `folder` does not hold yet; returns the path of the records.

    Cells are identified by the hash of their inputs, so a study that was killed goes on, and one
    whose seeds or tasks grew reuses what still holds. Raises OtherStudy when the folder holds
    anything else, records.Busy when another process is at work in it.
    """
    folder = Path(folder).expanduser().absolute()
    claim(folder, study.name)
    with records.locked(folder), Display(study.name) as display:
        display.say('fetching and encoding text')
        stuff = material.prepare(study, data_dir)
        todo = cells(study, stuff)
        done = records.read(folder)
        _append_if_new(folder, done, description(study, stuff, todo))
        pretrained = {(c.about['experts'], c.about['seed']): c for c in todo
                      if c.kind == 'pretrain'}
        shop = Workshop(study, stuff, folder, pretrained, display.advance)
        display.plan(sum(c.work for c in todo), len(todo))
        for cell in todo:
            if cell.id in done:
                display.skip(cell.work)
            else:
                _compute(shop, cell, display)
    return folder / records.FILE


def claim(folder: Path, name: str) -> None:
    """Make a folder this study's own, or refuse one that holds something else."""
    path = folder / IDENTITY
    if path.exists():
        other = json.loads(path.read_text())['name']
        if other != name:
            raise OtherStudy(f'{folder} holds the study {other!r}, not {name!r}; give another '
                             'folder with --out')
        return
    if folder.exists() and any(folder.iterdir()):
        raise OtherStudy(f'{folder} is not empty and holds no study; give another folder with '
                         '--out')
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f'.{IDENTITY}.{os.getpid()}'
    temporary.write_text(json.dumps({'name': name}))
    temporary.replace(path)


def description(study: Study, stuff: material.Material, todo: list[Cell]) -> dict[str, Any]:
    """The record that tells a report what the study is; 'cells' are the ids that belong to it."""
    keep: dict[str, list[int]] = {}
    for z, g in study.pairs:
        keep.setdefault(str(z), []).append(g)
    stages = {'pretrain': study.pretrain} | stage_options(study, 0)
    per_step = {n: s.accumulate * s.batch * s.length for n, s in stages.items()}
    return {'id': 'study', 'kind': 'study', 'outputs': {
        'name': study.name,
        'description': study.description,
        'experts': list(study.experts),
        'keep': keep,
        'tasks': list(study.tasks),
        'task_notes': {name: task.note for name, task in stuff.tasks.items()},
        'methods': [method.label for method in study.methods()],
        'seeds': list(study.seeds),
        'steps': {n: s.steps for n, s in stages.items()},
        'tokens': {n: s.steps * per_step[n] for n, s in stages.items()},
        'model': json.loads(study.model.to_json()),
        'data': {'corpus': stuff.source, 'digest': stuff.digest},
        'machine': machine(),
        'versions': {name: metadata.version(name) for name in PACKAGES},
        'cells': [cell.id for cell in todo],
    }}


def machine() -> dict[str, Any]:
    """Where the numbers come from, without names of hosts or users."""
    return {'devices': [d.device_kind for d in jax.devices()], 'cores': os.cpu_count(),
            'processor': platform.machine(), 'python': platform.python_version()}


def _append_if_new(folder: Path, done: dict[str, Any], record: dict[str, Any]) -> None:
    if done.get(record['id']) != json.loads(json.dumps(record)):
        records.append(folder, record)


def _compute(shop: Workshop, cell: Cell, display: Display) -> None:
    display.begin(cell.title, cell.work)
    start = time.perf_counter()
    outputs = COMPUTE[cell.kind](shop, cell)
    seconds = round(time.perf_counter() - start, 2)
    records.append(shop.folder, {'id': cell.id, 'kind': cell.kind, **cell.about,
                                 'seconds': seconds, 'outputs': outputs})
    display.finish(cell.title, seconds)
