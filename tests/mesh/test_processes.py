"""Two real processes that train together on this machine, stopped, killed and resumed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from moe_jax.base import processes

PROGRAM = Path(__file__).with_name('one_of_many.py')
OBSERVING = Path(__file__).with_name('observing.py')
STEPS = 14


def launch(out, *, alone=False, seconds=0.0, command=None):
    """The processes of one run, each with its share of 4 devices."""
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        port = probe.getsockname()[1]
    started = []
    for index in range(1 if alone else 2):
        devices = 4 if alone else 2
        flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}'
        env = os.environ | {'PYTHONPATH': str(PROGRAM.parents[2]), 'XLA_FLAGS': flags,
                            'JAX_COMPILATION_CACHE_DIR': str(out.parent / 'compiled'),
                            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
        if not alone:
            env |= {'JAX_COORDINATOR_ADDRESS': f'localhost:{port}', 'JAX_NUM_PROCESSES': '2',
                    'JAX_PROCESS_ID': str(index)}
        started.append(subprocess.Popen(
            [sys.executable, *(command or (PROGRAM, out, str(STEPS), str(seconds)))], env=env,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    return started


def wait_for_step(process, step):
    for line in process.stdout:
        if line.startswith('step ') and int(line.split()[1]) >= step:
            return
    pytest.fail(f'ended before step {step}: {process.stderr.read()[-2000:]}')


def losses(out):
    return {line['step']: line['loss'] for line in map(
        json.loads, (out / 'metrics.jsonl').read_text().splitlines())}


@pytest.mark.full
def test_two_processes_stop_and_die_and_give_what_one_gives(tmp_path):
    whole, run = tmp_path / 'whole', tmp_path / 'run'
    alone, = launch(whole, alone=True)
    # A request to stop, to one of them: both save the same step and say so by their exit code.
    first, second = launch(run, seconds=0.2)
    wait_for_step(first, 2)
    second.terminate()
    ends = [p.communicate(timeout=120) for p in (first, second)]
    assert [p.returncode for p in (first, second)] == [75, 75], [e[1][-1500:] for e in ends]
    steps = [p.name for p in (run / 'checkpoints').iterdir()]
    assert len(steps) == 1 and int(steps[0]) < 8
    assert 'step' not in ends[1][0]  # only the first one speaks
    # One is gone without a word: the other ends with an error, and the checkpoint is whole.
    first, second = launch(run, seconds=0.2)
    wait_for_step(first, 9)
    second.send_signal(signal.SIGKILL)
    began = time.monotonic()
    _, errors = first.communicate(timeout=120)
    assert first.returncode not in (0, 75) and time.monotonic() - began < 120
    second.communicate()
    # One process goes on for the two, and all losses are those of a single one.
    last, = launch(run, alone=True)
    said, errors = last.communicate(timeout=120)
    assert last.returncode == 0 and 'processes 1' in said, errors[-2000:]
    assert alone.communicate(timeout=120) and alone.returncode == 0
    one, two = losses(whole), losses(run)
    assert list(one) == list(two) == list(range(1, STEPS + 1))
    assert two == pytest.approx(one, rel=1e-5)


@pytest.mark.full
def test_two_processes_observe_what_one_does(tmp_path):
    started = [*launch(tmp_path / 'both', command=(OBSERVING,)),
               *launch(tmp_path / 'one', alone=True, command=(OBSERVING,))]
    ends = [p.communicate(timeout=120) for p in started]
    assert not any(p.returncode for p in started), [e[1][-1500:] for e in ends]
    *both, one = (json.loads(said.splitlines()[-1]) for said, _ in ends)
    for found in both:
        assert found['sample_key'] == one['sample_key']
        for name, value in one.items():
            size = max(np.abs(value).max(initial=0), 1.0)
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5 * size, err_msg=name)


def test_an_error_in_one_process_ends_the_other(tmp_path):
    started = launch(tmp_path / 'run', command=(OBSERVING, '1'))
    began = time.monotonic()
    ends = [p.communicate(timeout=120) for p in started]
    assert time.monotonic() - began < 120 and all(p.returncode for p in started)
    assert 'its disk is not mounted' in ends[1][1]


def test_which_processes_there_are_is_read_from_the_environment():
    plain = {'JAX_COORDINATOR_ADDRESS': 'host:1234', 'JAX_NUM_PROCESSES': '4',
             'JAX_PROCESS_ID': '3'}
    assert processes.addresses_of(plain) == {'coordinator_address': 'host:1234', 'num_processes': 4,
                                      'process_id': 3}
    assert processes.addresses_of(plain | {'JAX_NUM_PROCESSES': '1', 'JAX_PROCESS_ID': '0'}) is None
    assert processes.addresses_of({}) is None
    slurm = {'SLURM_PROCID': '0', 'SLURM_NTASKS': '8', 'SLURM_JOB_ID': '1'}
    assert processes.addresses_of(slurm) is None  # an allocation, and no step of several tasks
    assert processes.addresses_of(slurm | {'SLURM_STEP_NUM_TASKS': '8'}) == {
        'cluster_detection_method': 'slurm'}
    assert processes.addresses_of({'TPU_WORKER_HOSTNAMES': 'a,b'}) == {}
    assert processes.addresses_of({'TPU_WORKER_HOSTNAMES': 'localhost'}) is None
    with pytest.raises(ValueError, match='JAX_PROCESS_ID is not'):
        processes.addresses_of({k: v for k, v in plain.items() if k != 'JAX_PROCESS_ID'})
    with pytest.raises(ValueError, match='number of this one, from 0'):
        processes.addresses_of(plain | {'JAX_PROCESS_ID': '4'})
