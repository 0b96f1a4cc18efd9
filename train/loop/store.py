"""A run's folder: its identity, the newest checkpoints, metrics, and the model it ends with.

run.json       config, options and a probe of the starting weights; a resume must agree with it
checkpoints/   orbax, one folder per step, visible only when complete
metrics.jsonl  one line per logged step, without times: an interrupted run writes the same file
model/         the final weights, as `moe_jax.load` reads them
lock           held by the process that works here; the system frees it when that process dies
"""

import contextlib
import dataclasses
import itertools
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
import orbax.checkpoint as ocp

from moe_jax.base import lock, processes
from moe_jax.base.files import DiskFull, guard_space, sync, write
from moe_jax.base.tree import Params, count_bytes, leaves_with_paths
from moe_jax.config import Config
from moe_jax.model.fingerprint import same_model
from train.loop.options import TrainOptions
from train.loop.state import TrainState

PROBED = 2**16  # numbers of a leaf that its probe reads
FREE = ('log_every', 'evaluate_every', 'checkpoint_every', 'keep')  # may change on resume


@dataclasses.dataclass(frozen=True)
class Store:
    """An open run folder."""

    out: Path
    manager: ocp.CheckpointManager

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
    identity = _identity(cfg, params, options, names or {})
    claimed = processes.first(lambda: _claimed(out, identity))
    try:
        manager = ocp.CheckpointManager(
            out / 'checkpoints',
            options=ocp.CheckpointManagerOptions(
                max_to_keep=options.keep,
                # Synchronous: a save that returned is on disk, and no thread outlives the run.
                enable_async_checkpointing=False,
                cleanup_tmp_directories=False,
            ),
        )
        try:
            yield Store(out, manager)
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
        _check_identity(out / 'run.json', identity)
        # Orbax would sweep what a killed save left in a thread of its own, and meet the next save.
        _sweep(out / 'checkpoints')
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
    state, kept = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        (template, carry),
    )
    kept = {'carry': ocp.args.StandardRestore(kept)} if jax.tree.leaves(kept) else {}
    items = store.manager.restore(step, args=ocp.args.Composite(
        state=ocp.args.StandardRestore(state), data=ocp.args.JsonRestore(), **kept
    ))
    carry = items['carry'] if kept else carry
    return items['state'], carry, items['data']['batch'], history


def newest(out: str | Path, template: TrainState) -> TrainState:
    """The state of the newest checkpoint in a run's folder, laid out as the template is."""
    folder = Path(out).absolute() / 'checkpoints'
    if not folder.is_dir():
        raise FileNotFoundError(f'{out}: not the folder of a run, or without checkpoints')
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), template
    )
    with ocp.CheckpointManager(folder) as manager:
        if (step := manager.latest_step()) is None:
            raise FileNotFoundError(f'{folder}: no checkpoint is complete yet')
        items = manager.restore(step, args=ocp.args.Composite(
            state=ocp.args.StandardRestore(shapes)))
    return items['state']


def append(store: Store, line: dict[str, Any]) -> None:
    """Add one line to metrics.jsonl, in the first process."""
    if not processes.is_first():
        return
    with open(store.metrics, 'a') as file:
        file.write(json.dumps(line) + '\n')


def _check_folder(out: Path) -> None:
    foreign = out.is_dir() and any(out.iterdir()) and not (out / 'lock').exists()
    if foreign or (out.exists() and not out.is_dir()):
        raise FileExistsError(f'{out}: exists and is not the folder of a run; choose another path')


def _identity(
    cfg: Config, params: Params, options: TrainOptions, names: Mapping[str, str]
) -> dict[str, Any]:
    fields = dataclasses.asdict(options)
    kept = {name: value for name, value in fields.items() if name not in FREE}
    probes = {path: _probe(leaf) for path, leaf in leaves_with_paths(params)}
    identity = {'config': json.loads(cfg.to_json()), 'options': kept, 'start': probes}
    identity |= names
    return json.loads(json.dumps(identity))  # as it will be read: tuples are lists


def _same_name(before: str | None, now: str | None) -> bool:
    """Whether two names are equal, word by word, with fingerprints of one model taken as equal."""
    if before is None or now is None:
        return before == now
    pairs = list(itertools.zip_longest(before.split(), now.split(), fillvalue=''))
    return all(was == word or same_model(was, word) for was, word in pairs)


def _probe(leaf: Any) -> float:
    """A number that differs between weights but not between machines that made the same ones.

    Not a `fingerprint`: fresh weights are drawn anew when a run resumes, and differ in their last
    bits between a CPU and a GPU, where a hash would call the run another. A number may be near.
    """
    # Along the axes, from the largest: of an array that is spread out little travels.
    steps = [1] * leaf.ndim
    for axis in np.argsort(leaf.shape)[::-1]:
        left = math.prod(-(-size // step) for size, step in zip(leaf.shape, steps, strict=True))
        steps[axis] = min(leaf.shape[axis], -(-left // PROBED)) or 1
    flat = processes.fetch(leaf[tuple(slice(None, None, step) for step in steps)])
    flat = flat.ravel().astype(np.float64)
    return float(flat @ np.cos(np.arange(flat.size)) / (np.linalg.norm(flat) or 1.0))


def _check_identity(path: Path, identity: dict[str, Any]) -> None:
    if not path.exists():
        write(path, json.dumps(identity, indent=1))
        return
    before = json.loads(path.read_text())
    faults = [
        f'{part}.{name} was {before[part].get(name)!r} and is now {value!r}'
        for part in ('config', 'options') for name, value in identity[part].items()
        if before[part].get(name) != value
    ]
    faults += [f'{name} was {before.get(name)} and is now {identity.get(name)}'
               for name in ('callback', 'objective', 'from')
               if not _same_name(before.get(name), identity.get(name))]
    if not faults:
        was, now = before['start'], identity['start']
        same = was.keys() == now.keys() and np.allclose(
            [was[name] for name in now], list(now.values()), rtol=1e-3, atol=1e-5
        )
        faults = [] if same else ['the starting weights differ']
    if faults:
        raise ValueError(
            f'{path}: this folder holds another run: {"; ".join(faults[:6])}. '
            'Give what it was started with to resume it, or another folder.'
        )


def _read_metrics(path: Path, step: int) -> list[dict[str, Any]]:
    """The lines up to a step; a last line that was cut short by a crash is no line."""
    lines = path.read_text().splitlines() if path.exists() else []
    history = []
    for number, line in enumerate(lines, 1):
        try:
            parsed = json.loads(line)
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f'{path}, line {number}: not JSON: {error}') from None
            break
        if parsed['step'] <= step:
            history.append(parsed)
    return history
