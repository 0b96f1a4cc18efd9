import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.matrix import rows

PROGRAM = Path(__file__).with_name('on_devices.py')


CHECKS = 'layer', 'forward', 'pruning', 'fingerprints', 'notebook', 'training', 'distilling'


@pytest.mark.parametrize('check', rows(CHECKS, quick=('layer', 'fingerprints')))
def test_many_devices_give_what_one_gives(check):
    env = os.environ | {'PYTHONPATH': str(PROGRAM.parents[2])}
    done = subprocess.run([sys.executable, PROGRAM, check], env=env, capture_output=True, text=True,
                          timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (name, fault), = map(json.loads, done.stdout.splitlines())
    assert name == check and fault == ''
