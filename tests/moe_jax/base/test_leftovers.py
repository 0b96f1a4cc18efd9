"""What killed runs leave beside a file or folder: swept by the next one, unless its owner lives."""

import os
import subprocess
import sys
import threading

import pytest

from moe_jax.base import files, leftovers

# A run that is killed while it writes: before the rename, or between the two renames.
RUN = """
import os, signal, sys
from pathlib import Path
from moe_jax.base import files
path, when = Path(sys.argv[1]), sys.argv[2]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if when == 'file':
    with files.replacing(path) as temporary:
        temporary.write_text('half')
        die()
rename, seen = Path.rename, []
def second(self, target):
    seen.append(target)
    if when == 'between' and len(seen) == 3:
        die()
    return rename(self, target)
Path.rename = second
with files.replacing_folder(path, lambda path: None, size=1, what='a test', overwrite=True) as new:
    (new / 'content').write_text('new')
    if when == 'folder':
        die()
"""


def killed(path, when):
    run = subprocess.run([sys.executable, '-c', RUN, str(path), when], capture_output=True,
                         text=True, env=os.environ | {'PYTHONPATH': os.getcwd()})
    assert run.returncode == -9, run.stderr


def others(path):
    return sorted(p.name for p in path.parent.iterdir() if p != path)


@pytest.fixture
def old(monkeypatch):
    """As if a minute had passed."""
    monkeypatch.setattr(leftovers, 'YOUNG', -1)


def folder(path, text='newer', **options):
    with files.replacing_folder(path, lambda path: None, size=1, what='a test', **options) as new:
        (new / 'content').write_text(text)


def test_temporaries_of_killed_runs_are_swept(tmp_path, old):
    path, file = tmp_path / 'model', tmp_path / 'stats.npz'
    for _ in range(2):
        killed(path, 'folder')
        killed(file, 'file')
    assert len(list(tmp_path.iterdir())) == 4
    folder(path)
    files.write(file, 'whole')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['model', 'stats.npz']


def test_young_ones_and_those_of_other_names_and_hosts_stay(tmp_path, monkeypatch):
    path = tmp_path / 'model'
    killed(path, 'folder')
    strange = ['.model.abcdef01234567.tmp', '.models.tmp', '.model.tmp', '.model.swp']
    for name in strange:
        (tmp_path / name).mkdir()
    folder(path)
    assert len(others(path)) == 5  # it may be of a run that has not locked it yet
    monkeypatch.setattr(leftovers, 'YOUNG', -1)
    folder(path, overwrite=True)
    assert others(path) == sorted(strange)


def test_what_had_stepped_aside_is_put_back(tmp_path, old, caplog):
    path = tmp_path / 'model'
    folder(path, 'first')
    killed(path, 'between')
    assert not path.exists()
    leftovers.sweep(path)
    assert (path / 'content').read_text() == 'first' and 'put back' in caplog.text
    assert others(path) == []


def test_a_living_run_keeps_its_temporary(tmp_path, old):
    path = tmp_path / 'model'
    with (pytest.raises(FileExistsError, match='appeared while this one was being written'),
          files.replacing_folder(path, lambda path: None, size=1, what='a test') as slow):
        folder(path)
        assert slow.exists()
        (slow / 'content').write_text('slow')
    assert (path / 'content').read_text() == 'newer'
    assert others(path) == []


def strict(path):
    if not (path / 'content').is_file():
        raise ValueError(f'{path}: is not ours')


@pytest.mark.parametrize('overwrite', [False, True])
def test_of_several_that_write_one_path_one_succeeds_or_the_last_stays(tmp_path, overwrite):
    """All have looked at the path before any of them is there."""
    path, barrier, outcomes = tmp_path / 'model', threading.Barrier(3), []

    def run(text):
        try:
            with files.replacing_folder(path, strict, size=1, what='a test',
                                        overwrite=overwrite) as new:
                (new / 'content').write_text(text)
                barrier.wait()
            outcomes.append(text)
        except FileExistsError:
            outcomes.append(None)

    threads = [threading.Thread(target=run, args=(text,)) for text in 'abc']
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    written = [text for text in outcomes if text]
    assert len(written) == (3 if overwrite else 1)
    assert (path / 'content').read_text() in written
    assert others(path) == []
