import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name('on_devices.py')


@pytest.mark.parametrize(
    'check', ['layer', 'forward', 'pruning', 'notebook', 'training', 'distilling'])
def test_many_devices_give_what_one_gives(check):
    env = os.environ | {'PYTHONPATH': str(PROGRAM.parents[2])}
    done = subprocess.run([sys.executable, PROGRAM, check], env=env, capture_output=True, text=True,
                          timeout=300, check=False)
    assert done.returncode == 0 and done.stdout.endswith('same\n'), done.stderr[-3000:]
