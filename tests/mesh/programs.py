"""Programs that check things on several devices, each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def fault(program: str, check: str) -> str:
    """What a check of a program in this folder found wrong; '' for nothing."""
    env = os.environ | {'PYTHONPATH': str(FOLDER.parents[1])}
    done = subprocess.run([sys.executable, FOLDER / program, check], env=env, capture_output=True,
                          text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (name, found), = map(json.loads, done.stdout.splitlines())
    assert name == check
    return found
