"""Records survive a killed writer, and a folder has one writer."""

import json
import os
import signal
import subprocess
import sys

import pytest

from moe_jax.base.files import DiskFull
from moe_jax.study import records

HOLDER = """
import sys, time
from moe_jax.study import records
with records.locked(sys.argv[1]):
    print('held', flush=True)
    time.sleep(60)
"""


def test_the_last_record_of_an_id_counts(tmp_path):
    for record in ({'id': 'a', 'n': 1}, {'id': 'b', 'n': 2}, {'id': 'a', 'n': 3}):
        records.append(tmp_path, record)
    assert records.read(tmp_path) == {'a': {'id': 'a', 'n': 3}, 'b': {'id': 'b', 'n': 2}}
    assert len((tmp_path / records.FILE).read_text().splitlines()) == 3
    assert records.read(tmp_path / 'none') == {}


def test_a_writer_killed_after_any_byte_loses_only_its_own_record(tmp_path):
    for name in ('a', 'b'):
        records.append(tmp_path, {'id': name, 'text': 'é'})
    path = tmp_path / records.FILE
    whole = path.read_bytes()
    first = whole.index(b'\n') + 1
    for size in range(first, len(whole)):
        path.write_bytes(whole[:size])
        assert list(records.read(tmp_path)) == ['a']
        records.append(tmp_path, {'id': 'b', 'text': 'é'})
        assert path.read_bytes() == whole


@pytest.mark.parametrize('line', ['{"id": ', '[1]', '{"kind": "score"}', '7', ''])
def test_damage_in_the_middle_is_named_with_its_line(tmp_path, line):
    (tmp_path / records.FILE).write_text(f'{{"id": "a"}}\n{line}\n{{"id": "b"}}\n')
    with pytest.raises(ValueError, match=r'records\.jsonl:2: not a record.*Remove that line'):
        records.read(tmp_path)


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(ValueError, match=r'record a: .*not finite'):
        records.append(tmp_path, {'id': 'a', 'loss': float('nan')})
    assert not (tmp_path / records.FILE).exists()


@pytest.mark.parametrize('moment', ['before', 'while'])
def test_a_full_disk_is_named_and_leaves_a_readable_file(tmp_path, monkeypatch, moment):
    records.append(tmp_path, {'id': 'a'})

    def full(*_):
        raise OSError(28, 'No space left on device')

    if moment == 'before':
        usage = type('Usage', (), {'free': 10})
        monkeypatch.setattr('shutil.disk_usage', lambda path: usage)
    else:
        monkeypatch.setattr(records.os, 'fsync', full)
    with pytest.raises(DiskFull, match=r'adding to .*records\.jsonl needs .* free'):
        records.append(tmp_path, {'id': 'b'})
    monkeypatch.undo()
    records.append(tmp_path, {'id': 'c'})
    assert {'a', 'c'} <= set(records.read(tmp_path))


def test_a_lock_belongs_to_one_process_and_dies_with_it(tmp_path):
    holder = subprocess.Popen([sys.executable, '-c', HOLDER, str(tmp_path)], text=True,
                              stdout=subprocess.PIPE)
    assert holder.stdout.readline() == 'held\n'
    for _ in range(2):  # refusing does not disturb the holder
        with pytest.raises(records.Busy, match=f'process {holder.pid} .*--out'), \
                records.locked(tmp_path):
            pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert (tmp_path / records.LOCK).read_text() == str(holder.pid)  # stale
    with records.locked(tmp_path):
        assert (tmp_path / records.LOCK).read_text() == str(os.getpid())
    with records.locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match=r'another folder with --out') as caught, \
            records.locked(tmp_path / 'file/runs'):
        pass
    assert str(tmp_path / 'file/runs') == caught.value.filename


def test_records_are_one_line_of_sorted_json(tmp_path):
    records.append(tmp_path, {'id': 'a', 'text': 'one\ntwo', 'b': [1.5, None]})
    line, = (tmp_path / records.FILE).read_text().splitlines()
    assert line == json.dumps(json.loads(line), sort_keys=True, separators=(',', ':'))
