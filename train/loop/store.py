"""A run's folder: its identity, the newest checkpoints, metrics, and the model it ends with.

run.json       config, options and a probe of the starting weights; a resume must agree with it
checkpoints/   orbax, one folder per step, visible only when complete, each with its seal (`steps`)
metrics.jsonl  one line per logged step, without times: an interrupted run writes the same file
model/         the final weights, as `moe_jax.load` reads them
lock           held by the process that works here; the system frees it when that process dies
"""

import contextlib
import dataclasses
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import jax
import orbax.checkpoint as ocp

from moe_jax.base import lock, processes
from moe_jax.base.files import DiskFull, guard_space, sync, write
from moe_jax.base.tree import Params, count_bytes
from moe_jax.config import Config
from train.loop import reading, steps
from train.loop.identity import check, identity_of
from train.loop.options import TrainOptions
from train.loop.state import TrainState

log = logging.getLogger(__name__)



@dataclasses.dataclass(frozen=True)
class Store:
    """An open run folder."""

    out: Path
    manager: ocp.CheckpointManager
    keep: int = 1  # checkpoints that stay

    @property
    def metrics(self) -> Path:
        return self.out / 'metrics.jsonl'

    def latest(self) -> int:
        """Step of the newest complete checkpoint, 0 if there is none."""
        return self.manager.latest_step() or 0


@contextlib.contextmanager
def opened(out: str | Path, cfg: Config, params: Params, options: TrainOptions,
           names: Mapping[str, str] | None = None) -> Iterator[Store]:
    """Create or reopen a run folder for exactly this run, alone in it.

    names: what else makes it this run: that of its callback and of its objective, if it has them.
    """
    out = Path(out).absolute()
    identity = identity_of(cfg, params, options, names or {})
    claimed = processes.first(lambda: _claimed(out, identity))
    try:
        manager = ocp.CheckpointManager(
            out / 'checkpoints',
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None,  # `save` removes old ones once the new one has its seal
                # Synchronous: a save that returned is on disk, and no thread outlives the run.
                enable_async_checkpointing=False,
                cleanup_tmp_directories=False,
            ),
        )
        try:
            yield Store(out, manager, options.keep)
        finally:
            manager.close()
    finally:
        if claimed is not None:
            claimed.release()


def _claimed(out: Path, identity: dict[str, Any]) -> filelock.BaseFileLock:
    """The lock of a run's folder, which is made or found to be of this very run."""
    _check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        claimed = lock.claim(out / 'lock')
    except lock.Held:
        raise RuntimeError(f'{out}: another process is training in this folder') from None
    with contextlib.ExitStack() as stack:
        stack.callback(claimed.release)
        check(out / 'run.json', identity)
        # Orbax would sweep what a killed save left in a thread of its own, and meet the next save.
        _sweep(out / 'checkpoints')
        newest = steps.newest(out / 'checkpoints')
        steps.warn(out / 'checkpoints', newest)
        steps.set_aside(out / 'checkpoints', newest.damaged)
        stack.pop_all()
    return claimed


def save(store: Store, step: int, state: TrainState, data: str, carry: Any = None) -> None:
    """Write a checkpoint; the one before it goes only once this one is complete.

    `data` identifies the last batch that the state has seen; `carry` is what a callback keeps.
    """
    if store.latest() == step:
        return
    folder = store.out / 'checkpoints'
    what = f'the checkpoint of step {step} (that of step {store.latest()} is intact)'
    # Orbax refuses a tree without leaves.
    kept = {'carry': ocp.args.StandardSave(carry)} if jax.tree.leaves(carry) else {}
    items = ocp.args.Composite(
        state=ocp.args.StandardSave(state), data=ocp.args.JsonSave({'batch': data}), **kept
    )
    processes.first(lambda: sync(store.metrics))
    try:
        with guard_space(folder, count_bytes((state, carry)), what):
            store.manager.save(step, args=items)
            processes.first(lambda: steps.seal(folder, step))
        for old in sorted(store.manager.all_steps())[:-store.keep]:
            store.manager.delete(old)
    except DiskFull:
        _sweep(folder)
        raise


def _sweep(checkpoints: Path) -> None:
    """Remove checkpoints that were never finished."""
    for partial in checkpoints.glob('*.orbax-checkpoint-tmp*'):
        shutil.rmtree(partial, ignore_errors=True)


def restore(
    store: Store, template: TrainState, carry: Any = None
) -> tuple[TrainState, Any, str, list[dict[str, Any]]]:
    """The newest state and carry, the batch they saw last, their metrics.

    Without a checkpoint they are the template, the given carry and ''.
    Lines of metrics.jsonl beyond that step, or cut short, are dropped: they will be written again.
    """
    step = store.latest()
    history = _read_metrics(store.metrics, step)
    text = ''.join(json.dumps(line) + '\n' for line in history)
    processes.first(lambda: write(store.metrics, text))
    if not step:
        return template, carry, '', history
    state, kept = reading.wanted((template, carry))
    kept = {'carry': ocp.args.StandardRestore(kept)} if jax.tree.leaves(kept) else {}
    with reading.opened(store.out, step, template) as read:
        items = read(ocp.args.Composite(
            state=ocp.args.StandardRestore(state), data=ocp.args.JsonRestore(), **kept))
    carry = items['carry'] if kept else carry
    return items['state'], carry, items['data']['batch'], history


def newest(out: str | Path, template: TrainState) -> TrainState:
    """The state of the newest whole checkpoint in a run's folder, laid out as the template is."""
    out = Path(out).absolute()
    folder = out / 'checkpoints'
    if not folder.is_dir():
        raise FileNotFoundError(f'{out}: not the folder of a run, or without checkpoints')
    whole = steps.newest(folder)
    steps.warn(folder, whole)
    if not whole.step:
        raise FileNotFoundError(f'{folder}: no checkpoint is complete yet')
    with reading.opened(out, whole.step, template) as read:
        state = ocp.args.StandardRestore(reading.wanted(template))
        return read(ocp.args.Composite(state=state))['state']


def append(store: Store, line: dict[str, Any]) -> None:
    """Add one line to metrics.jsonl, in the first process."""
    if not processes.is_first():
        return
    with open(store.metrics, 'a') as file:
        file.write(json.dumps(line) + '\n')


def _check_folder(out: Path) -> None:
    # Copies may lack the lock, which is empty.
    marked = (out / 'lock').exists() or (out / 'run.json').is_file()
    foreign = out.is_dir() and any(out.iterdir()) and not marked
    if foreign or (out.exists() and not out.is_dir()):
        raise FileExistsError(f'{out}: exists and is not the folder of a run; choose another path')


def _read_metrics(path: Path, step: int) -> list[dict[str, Any]]:
    """The lines up to a step; a last line that was cut short by a crash is no line.

    A damaged line in their midst is dropped with a warning: it tells of the run, which does not
    depend on it. The damaged file stays beside the new one.
    """
    if not path.exists():
        return []
    lines = path.read_text(errors='replace').split('\n')
    history, damaged = [], []
    for number, line in enumerate(lines, 1):
        try:
            parsed = json.loads(line)
            if parsed['step'] <= step:
                history.append(parsed)
        except (ValueError, KeyError, TypeError):
            damaged += [number] if line and number < len(lines) else []
    if damaged:
        aside = path.with_suffix('.damaged.jsonl')
        aside.write_bytes(path.read_bytes())
        log.warning('%s: line %d (of %d such) is damaged and dropped; the file as it was is now %s',
                    path, damaged[0], len(damaged), aside)
    return history
