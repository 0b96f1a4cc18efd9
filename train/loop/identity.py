"""What makes a run this run: its config, options and starting weights, as run.json holds them."""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_jax.base import processes
from moe_jax.base.files import write
from moe_jax.base.tree import Params, leaves_with_paths
from moe_jax.config import Config
from moe_jax.model.fingerprint import same_model
from train.loop.options import TrainOptions

PROBED = 2**16  # numbers of a leaf that its probe reads
# FREE may change on a resume; MEASURED within bounds: the same rows in a step, and more or fewer
# steps where the schedule does not depend on their number.
MEASURED = 'batch', 'accumulate', 'steps'
FREE = 'log_every', 'evaluate_every', 'checkpoint_every', 'keep'


def identity_of(
    cfg: Config, params: Params, options: TrainOptions, names: Mapping[str, str]
) -> dict[str, Any]:
    """What run.json holds; `names` are those of the callback, the objective, and the start."""
    fields = dataclasses.asdict(options)
    kept = {name: value for name, value in fields.items() if name not in FREE}
    probes = {path: _probe(leaf) for path, leaf in leaves_with_paths(params)}
    identity = {'config': json.loads(cfg.to_json()), 'options': kept, 'start': probes}
    identity |= names
    return json.loads(json.dumps(identity))  # as it will be read: tuples are lists


def check(path: Path, identity: dict[str, Any]) -> None:
    """Write run.json, or hold it against what the run is now; ValueError says what differs."""
    if not path.exists():
        write(path, json.dumps(identity, indent=1))
        return
    before = _read(path)
    faults = [
        f'{part}.{name} was {before[part].get(name)!r} and is now {value!r}'
        for part in ('config', 'options') for name, value in identity[part].items()
        if name not in MEASURED and before[part].get(name) != value
    ]
    faults += [*_measures(before['options'], identity['options'])]
    faults += [f'{name} was {before.get(name)} and is now {identity.get(name)}'
               for name in ('callback', 'objective', 'from')
               if not same_name(before.get(name), identity.get(name))]
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
    if any(before['options'].get(name) != identity['options'][name] for name in MEASURED):
        write(path, json.dumps(identity | {'start': before['start']}, indent=1))


def _read(path: Path) -> dict[str, Any]:
    try:
        before = json.loads(path.read_text())
        for part in ('config', 'options', 'start'):
            dict(before[part])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: damaged ({type(error).__name__}: {error}). Copy it again from where it is '
            'whole; without it nothing tells whether this folder holds this run'
        ) from None
    return before


def _measures(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What has changed of the rows of a step and of the number of steps, and may not."""
    rows = [options.get('batch', 0) * options.get('accumulate', 0) for options in (before, now)]
    if rows[0] != rows[1]:
        yield (f'options.batch * options.accumulate, the rows of a step, was {rows[0]} and is now '
               f'{rows[1]} (batch and accumulate may change if their product stays)')
    if before.get('steps') != now['steps'] and now['schedule'] != 'constant':
        yield (f'options.steps was {before.get("steps")} and is now {now["steps"]}: the schedule '
               f'{now["schedule"]!r} falls to 0 at the last step, so every learning rate would be '
               "another (only schedule='constant' can be continued)")


def same_name(before: str | None, now: str | None) -> bool:
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
