"""Several processes that run one program: who they are, what only the first does, how they agree.

All functions do nothing special where there is one process.
"""

import functools
import itertools
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

log = logging.getLogger('moe_jax')
T = TypeVar('T')

HEARTBEAT = 60  # seconds
ENDING = 90  # seconds between the end of the first process and that of the last
PLAIN = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
PATIENCE = 7 * 24 * 3600 * 1000  # milliseconds; a process that died is noticed long before
TEXT = 2000  # bytes of an error that the first process tells the others
_waits = itertools.count()


def start(environment: Mapping[str, str] = os.environ, *, heartbeat: int = HEARTBEAT,
          ending: int = ENDING) -> bool:
    """Join the other processes of this run, if the environment says that there are any.

    Read are, in this order: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID; a Slurm job step of several tasks; the hosts of a TPU pod. To be called before
    any computation. Returns whether there are several processes. A process that is not heard of for
    `heartbeat` seconds, or that has ended `ending` seconds before the others, is dead, and the
    others end with an error: one that has more to do than they lets them `wait`. Raises ValueError
    for variables that contradict each other.
    """
    addresses = addresses_of(environment)
    if addresses is None:
        return False
    # One that raised still sends heartbeats while it waits for the others before it exits.
    jax.distributed.initialize(**addresses, heartbeat_timeout_seconds=heartbeat,
                               shutdown_timeout_seconds=ending)
    log.info('process %d of %d, with %d of %d devices', jax.process_index(), jax.process_count(),
             jax.local_device_count(), jax.device_count())
    return True


def addresses_of(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of jax.distributed.initialize by the environment; None where this is all of it."""
    named = {name: environment[name] for name in PLAIN if environment.get(name)}
    if named and len(named) < len(PLAIN):
        missing = ', '.join(name for name in PLAIN if name not in named)
        raise ValueError(f'{", ".join(named)} is set and {missing} is not: several processes need '
                         'all three')
    if named:
        try:
            count, index = int(named[PLAIN[1]]), int(named[PLAIN[2]])
        except ValueError:
            count, index = 0, 0
        if not 0 <= index < count:
            said = ', '.join(f'{name}={named[name]!r}' for name in PLAIN[1:])
            raise ValueError(f'{said}: give a number of processes, and the number of this one, '
                             'from 0')
        return {'coordinator_address': named[PLAIN[0]], 'num_processes': count,
                'process_id': index} if count > 1 else None
    # Of a job step alone: in an allocation without srun SLURM_NTASKS is set, and there is one task.
    if int(environment.get('SLURM_STEP_NUM_TASKS', '1')) > 1 and 'SLURM_PROCID' in environment:
        return {'cluster_detection_method': 'slurm'}
    if ',' in environment.get('TPU_WORKER_HOSTNAMES', ''):
        return {}
    return None


def several() -> bool:
    """Whether more than one process takes part."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that prints, and writes what is written once."""
    return jax.process_index() == 0


def wait(name: str) -> None:
    """Until all processes are here, however long that takes."""
    if several():
        # By the coordinator: a collective of devices gives up on the slowest after some seconds.
        ocp.multihost.get_barrier_sync_fn()(key=f'moe_jax {name} {next(_waits)}',
                                            timeout_ms=PATIENCE)


def first(action: Callable[[], T]) -> T | None:
    """Do something in the first process alone; what it raises is raised in all, once it is known.

    The others wait, and get None. They raise RuntimeError with the text of the first one's error.
    """
    if not several():
        return action()
    result, error = None, None
    if is_first():
        try:
            result = action()
        except Exception as caught:  # the others must hear of it before it goes on
            error = caught
    wait('first')
    text = '' if error is None else f'{type(error).__name__}: {error}'
    payload = np.zeros(TEXT, np.uint8)
    encoded = np.frombuffer(text.encode()[:TEXT], np.uint8)
    payload[:len(encoded)] = encoded
    heard = bytes(np.asarray(multihost_utils.broadcast_one_to_all(payload))).rstrip(b'\0')
    if error is not None:
        raise error
    if heard:
        raise RuntimeError(f'process 0 failed: {heard.decode(errors="replace")}')
    return result


def same_text(text: str) -> str:
    """The first process's text (at most 64 bytes), in all."""
    if not several():
        return text
    payload = np.zeros(64, np.uint8)
    encoded = np.frombuffer(text.encode(), np.uint8)
    payload[:len(encoded)] = encoded
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(payload))).rstrip(b'\0').decode()


def fetch(tree: Any) -> Any:
    """Arrays in numpy, also those of which this process holds a part only; all must call it."""
    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or (
                leaf.is_fully_replicated):
            return leaf
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(np.asarray, jax.device_get(jax.tree.map(one, tree)))


def largest(values: np.ndarray) -> np.ndarray:
    """The elementwise maximum over processes, of uint32 or float32."""
    if not several():
        return values
    return np.asarray(multihost_utils.process_allgather(values)).max(axis=0)


def poll() -> Callable[[bool], bool]:
    """A question to all processes that is asked again and again: whether any says yes.

    Where there are several, the answer is that of the round before, the same in all.
    """
    before: Callable[[], bool] = lambda: False  # noqa: E731

    def ask(flag: bool) -> bool:
        nonlocal before
        if not several():
            return flag
        heard, before = before(), vote(flag)
        return heard

    return ask


def vote(flag: bool) -> Callable[[], bool]:
    """Ask all processes; the function returned waits for whether any said yes, the same in all.

    The asking itself does not wait, so that it costs nothing beside a training step.
    """
    if not several():
        return lambda: flag
    where, any_of = _polling()
    votes = jax.make_array_from_callback((jax.device_count(),), where,
                                         lambda _: np.array([flag], np.int32))
    voted = any_of(votes)
    return lambda: bool(np.asarray(voted))


@functools.cache
def _polling() -> tuple[NamedSharding, Callable[[jax.Array], jax.Array]]:
    """Where votes lie, one per device, and the compiled question whether any is yes."""
    mesh = jax.make_mesh((jax.device_count(),), ('all',), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, P('all')), jax.jit(lambda votes: votes.max(),
                                                  out_shardings=NamedSharding(mesh, P()))
