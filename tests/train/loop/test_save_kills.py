"""kill -9 while a checkpoint is written; MOE_JAX_KILLS=50 does it more often than a suite can."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from tests.train.loop.saving import state_of
from tests.train.train_tiny import CFG, OPTIONS, params
from train.loop import store

PROGRAM = Path(__file__).with_name('saving.py')
KILLS = int(os.environ.get('MOE_JAX_KILLS', '1'))


def test_no_complete_step_is_lost_and_no_partial_one_is_loaded(tmp_path):
    environment = os.environ | {'PYTHONPATH': str(PROGRAM.parents[3]), 'JAX_PLATFORMS': 'cpu'}
    rng, saved = random.Random(0), 0
    for kill in range(KILLS):
        child = subprocess.Popen([sys.executable, PROGRAM, tmp_path / 'run'], env=environment,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        began, took, lines = 0.0, 0.1, []
        for line in child.stdout:
            word, step = line.split()
            lines.append((word, int(step)))
            if word == 'saved':
                took = time.monotonic() - began
            elif len(lines) > 2:
                break
            began = time.monotonic()
        time.sleep(rng.uniform(0, took))
        child.kill()
        rest, errors = child.communicate()
        assert lines, errors
        saved = max([saved, *(n for word, n in lines if word == 'saved'),
                     *(int(line.split()[1]) for line in rest.splitlines() if 'saved' in line)])
        with store.opened(tmp_path / 'run', CFG, params(CFG), OPTIONS) as folder:
            state, _, data, _ = store.restore(folder, state_of(0))
            assert folder.latest() >= saved, kill
            step = folder.latest()
            assert int(state.step) == step and data == f'batch {step}'
            assert all(np.all(np.asarray(leaf) == step) for leaf in jax.tree.leaves(state)), kill
        assert not list((tmp_path / 'run/checkpoints').glob('*tmp*'))
