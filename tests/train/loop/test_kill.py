"""Real processes, really killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import moe_jax.storage.native
from tests.train import train_tiny
from tests.train.train_tiny import CFG, equal, params, program_options
from train.loop import store

PROGRAM = Path(train_tiny.__file__)
ROOT = PROGRAM.parents[2]


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
    """All runs load one compiled program from a cache, so that bytes compare."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path_factory.mktemp('compiled')))
        patch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
        yield


def launch(out, seconds=0.02):
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(out), str(seconds)], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )


def wait_for_step(process, step):
    """Until the program has reported `step` (or it ended); the last line read."""
    for line in process.stdout:
        if line.strip().isdigit() and int(line) >= step:
            return
    pytest.fail(f'ended before step {step}: {process.stderr.read()}')


def finish(out):
    process = launch(out, seconds=0)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


@pytest.mark.full
@pytest.mark.parametrize('steps', [[3, 9, 15]])
def test_kill_9_at_any_moment_then_resume_equals_unbroken(tmp_path, steps):
    reference, out = tmp_path / 'unbroken/run', tmp_path / 'broken/run'
    finish(reference)
    rng = random.Random(0)
    for step in steps:
        process = launch(out)
        wait_for_step(process, step)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        with store.opened(out, CFG, params(), program_options()) as folder:
            assert folder.latest() >= step - step % 2 - 2
    finish(out)
    assert (out / 'metrics.jsonl').read_bytes() == (reference / 'metrics.jsonl').read_bytes()
    models = [moe_jax.storage.native.load(folder / 'model')[1] for folder in (out, reference)]
    assert equal(*models)


def test_sigterm_exits_with_75_and_saves(tmp_path):
    process = launch(tmp_path / 'run')
    wait_for_step(process, 4)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert 'stopped by SIGTERM after step' in errors and 'Traceback' not in errors
    lines = (tmp_path / 'run/metrics.jsonl').read_text().splitlines()
    with store.opened(tmp_path / 'run', CFG, params(), program_options()) as folder:
        assert folder.latest() == json.loads(lines[-1])['step'] >= 4
