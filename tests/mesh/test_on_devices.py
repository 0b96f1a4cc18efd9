import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name('on_devices.py')


@pytest.fixture(scope='module')
def found():
    """What went wrong in each check, of one process that runs all."""
    env = os.environ | {'PYTHONPATH': str(PROGRAM.parents[2])}
    done = subprocess.run([sys.executable, PROGRAM], env=env, capture_output=True, text=True,
                          timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize(
    'check', ['layer', 'forward', 'pruning', 'fingerprints', 'notebook', 'training', 'distilling'])
def test_many_devices_give_what_one_gives(found, check):
    assert found[check] == ''
