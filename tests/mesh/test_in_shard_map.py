"""The library inside a caller's own shard_map, under its default checks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.matrix import rows

PROGRAM = Path(__file__).with_name('in_shard_map.py')
CASES = ('loop', 'gated, bfloat16', 'blocks', 'ragged', 'capacity', 'sinks, windows',
         'expert choice', 'hash', 'blocked attention')


@pytest.mark.parametrize('case', rows(CASES, quick=('loop',)))
def test_two_devices_give_what_each_half_gives(case):
    env = os.environ | {'PYTHONPATH': str(PROGRAM.parents[2])}
    done = subprocess.run([sys.executable, PROGRAM, case], env=env, capture_output=True, text=True,
                          timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (name, fault), = map(json.loads, done.stdout.splitlines())
    assert (name, fault) == (case, '')
