import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name('mesh_observe.py')


def test_eight_devices_see_what_one_sees():
    env = os.environ | {'PYTHONPATH': str(SCRIPT.parents[2]), 'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run([sys.executable, SCRIPT], env=env, capture_output=True, text=True,
                          timeout=300, check=False)
    assert done.returncode == 0 and done.stdout == 'same\n', done.stderr[-3000:]
