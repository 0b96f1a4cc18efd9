"""Files of arrays: what was written comes back, and nothing else is taken, however it was made."""

import io
import json
import zipfile

import numpy as np
import pytest

from moe_jax.base import npz
from moe_jax.base.files import DiskFull

RNG = np.random.default_rng(0)
ARRAYS = {'a': RNG.normal(size=(5, 7)), 'b/c': RNG.integers(0, 9, 40).astype(np.int32)}
HEAD = {'format': 1, 'names': ['a', 'b/c']}


def limit(header, name):
    if name not in header['names']:
        raise ValueError(f'{name} is none of the file')
    return 400


def members(**content):
    """The bytes of an archive of raw members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file.getvalue()


def array(value):
    file = io.BytesIO()
    np.save(file, value)
    return file.getvalue()


def header(**fields):
    return array(np.frombuffer(json.dumps(HEAD | fields).encode(), np.uint8))


@pytest.mark.parametrize('compressed', [False, True])
def test_what_was_written_comes_back(tmp_path, compressed):
    path = tmp_path / 'new' / 'file.npz'
    npz.write(path, HEAD, ARRAYS, 'a thing', compressed=compressed)
    head, arrays = npz.read(path, 'a thing', limit)
    assert head == HEAD
    assert set(arrays) == set(ARRAYS)
    for name, value in ARRAYS.items():
        assert arrays[name].dtype == value.dtype
        np.testing.assert_array_equal(arrays[name], value)
    if compressed:
        with pytest.raises(ValueError, match='it is compressed'):
            npz.read(path, 'a thing')


LARGE = np.zeros(10**8, np.uint8)


@pytest.mark.parametrize('content, message', [
    (members(**{'header.npy': header()}, **{'x.npy': array(LARGE)}), 'x is none of the file'),
    (members(**{'header.npy': header()}, **{'a.npy': array(LARGE)}), 'at most 400 are expected'),
    (members(**{'header.npy': array(LARGE)}), 'at most 67,108,864 are expected'),
    (members(**{'a.npy': array(np.ones(3))}), 'header'),
    (members(**{'header.npy': header(), 'header': header()}), 'two arrays of one name'),
    (members(**{'header.npy': header(), 'a.npy': array(np.array([{}], object))}), 'pickle'),
    (members(**{'header.npy': header(), 'a.npy': b'x' * 60}), 'a thing'),
    # An array that claims to be of terabytes.
    (members(**{'header.npy': header(), 'a.npy': array(np.ones(3)).replace(
        b"(3,), }       ", b"(3000000000000,)}")[:128] + b'0' * 24}), 'a thing'),
    (members(**{'header.npy': array(np.frombuffer(b'[1]', np.uint8))}), 'no object'),
    (b'', 'a thing'), (b'PK', 'a thing'), (b'PK\x05\x06' + b'\0' * 18, 'header'),
])
def test_hostile_files_are_refused_before_they_are_unpacked(tmp_path, content, message):
    path = tmp_path / 'file.npz'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f'not a thing of moe-jax, or damaged.*{message}|{message}'
                       ) as caught:
        npz.read(path, 'a thing', limit)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize('compressed', [False, True])
def test_no_damage_raises_anything_else(tmp_path, compressed):
    path = tmp_path / 'file.npz'
    npz.write(path, HEAD, ARRAYS, 'a thing', compressed=compressed)
    whole = path.read_bytes()
    for trial in range(400):
        rng = np.random.default_rng(trial)
        content = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        if trial % 3 == 0:
            content = content[:rng.integers(len(content))]
        path.write_bytes(content)
        try:
            npz.read(path, 'a thing', limit)
        except ValueError as error:
            assert str(path) in str(error), trial


def test_a_full_disk_is_told_with_path_and_bytes(tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, 'disk_usage',
                        lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(DiskFull, match=r'saving a thing .*file\.npz needs [\d,]+ bytes'):
        npz.write(tmp_path / 'file.npz', HEAD, ARRAYS, 'a thing')
    assert list(tmp_path.iterdir()) == []
