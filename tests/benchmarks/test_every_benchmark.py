"""Every benchmark that a CPU can run, in miniature: it runs, agrees with its rival, and records."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cases import CASES

ROOT = Path(__file__).parents[2]


@pytest.mark.full
@pytest.mark.parametrize('name', [name for name, case in CASES.items() if 'cpu' in case.backends])
def test_a_small_run_measures_something_and_its_numbers_are_finite(name, tmp_path):
    pytest.importorskip('torch')
    pytest.importorskip('lm_eval')
    out = tmp_path / 'numbers.jsonl'
    run = subprocess.run([sys.executable, '-m', 'benchmarks', name, '--small', '--rounds', '2',
                          '--out', out], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert records and {one['benchmark'] for one in records} == {name}
    assert all(abs(one['value']) < float('inf') for one in records), records
