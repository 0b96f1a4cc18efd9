"""The forecast against what XLA allocates and sends in compiled steps, on meshes of 4 devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.matrix import rows

SCRIPT = Path(__file__).with_name('forecast_on_devices.py')
# What a device sends of a collective's result, as shares of it, in a ring of 2 and of 4; a
# reduction goes round twice. By case: the kind of ours, the kind of XLA, the share, the tolerance.
TRAFFIC = {
    'exchange': ('all_to_all', 'all-to-all', 1 / 2, 0.02),
    'data': ('all_reduce', 'all-reduce', 2 * 3 / 4, 0.05),
    'model': ('all_reduce', 'all-reduce', 2 * 1 / 2, 0.05),
    'fsdp': ('all_gather', 'all-gather', 3 / 4, 0.05),
}


@pytest.mark.parametrize('case', rows(['one device', *TRAFFIC], quick=['one device']))
def test_memory_and_traffic_are_those_of_the_compiled_program(case):
    env = os.environ | {'PYTHONPATH': str(SCRIPT.parents[3]), 'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run([sys.executable, SCRIPT, case], env=env, capture_output=True, text=True,
                          timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    _, xla, ours, results, sent = json.loads(done.stdout)
    assert abs(ours / xla - 1) < 0.2, (xla, ours)
    if case in TRAFFIC:
        name, kind, share, tolerance = TRAFFIC[case]
        assert sent[name] == pytest.approx(share * results[kind], rel=tolerance)
