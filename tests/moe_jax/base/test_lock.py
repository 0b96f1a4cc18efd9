"""Locks: one holder, refused at once, freed by `kill -9`, contents left alone."""

import os
import signal
import subprocess
import sys
import time

import pytest

from moe_jax.base import lock

HOLDER = """
import sys, time
from pathlib import Path
from moe_jax.base import lock
claimed = lock.claim(Path(sys.argv[1]))
print('held', flush=True)
time.sleep(60)
"""


def test_two_processes_do_not_hold_one_lock_and_kill_9_frees_it(tmp_path):
    path = tmp_path / 'lock'
    path.write_text('owner')
    holder = subprocess.Popen([sys.executable, '-c', HOLDER, path], text=True,
                              stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == 'held\n'
        began = time.monotonic()
        for _ in range(2):
            with pytest.raises(lock.Held, match='lock is locked'):
                lock.claim(path)
        assert time.monotonic() - began < 5  # nobody waits
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    lock.claim(path).release()
    assert path.exists()


def test_who_is_refused_leaves_the_contents_alone(tmp_path):
    path = tmp_path / 'lock'
    claimed = lock.claim(path)
    path.write_text('owner')
    with pytest.raises(lock.Held):
        lock.claim(path)
    assert path.read_text() == 'owner'
    claimed.release()
    lock.claim(path).release()


def test_a_lock_that_is_forgotten_is_freed(tmp_path):
    lock.claim(tmp_path / 'lock')
    lock.claim(tmp_path / 'lock').release()


def test_a_lock_that_cannot_be_made_is_an_os_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError):
        lock.claim(tmp_path / 'file/lock')
