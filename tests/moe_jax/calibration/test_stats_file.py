import itertools
import zipfile

import numpy as np
import pytest

from moe_jax import Stats
from moe_jax.calibration.observe import observe


@pytest.fixture(scope='module')
def stats(cfg, params):
    tokens = np.random.default_rng(5).integers(0, 23, (2, 9))
    mask = np.ones((2, 9), bool)
    return observe(cfg, params, [{'tokens': tokens, 'mask': mask, 'group': group}
                                 for group in ('code', 'drama')], reservoir=5)


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_save_and_load(stats, tmp_path):
    path = tmp_path / 'new folder' / 'stats.npz'
    stats.save(path)
    found = Stats.load(path)
    assert found.fingerprint == stats.fingerprint and set(found.groups) == set(stats.groups)
    for group, layers in stats.groups.items():
        assert set(found.groups[group]) == set(layers)
        for i, sums in layers.items():
            for name, value in sums.items():
                np.testing.assert_array_equal(found.groups[group][i][name], value)
                assert found.groups[group][i][name].dtype == value.dtype
    assert [p.name for p in path.parent.iterdir()] == ['stats.npz']


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Stats.load(tmp_path / 'none.npz')


def test_a_damaged_file_is_refused_by_name_or_was_not_harmed(stats, tmp_path):
    path = tmp_path / 'stats.npz'
    stats.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b'', b'PK', b'<html></html>', whole[:1], whole[:-1], whole[:len(whole) // 2],
               whole[100:], bytes(rng.integers(0, 256, 500, np.uint8))]
    for place in rng.integers(0, len(whole), 60):
        damaged.append(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1:])
    refused = 0  # not always: a zip has bytes that nobody reads
    for content in damaged:
        path.write_bytes(content)
        try:
            found = Stats.load(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            for i, group in itertools.product(stats.layers, stats.groups):
                same(found.layer(i, group), stats.layer(i, group))
    assert refused > len(damaged) / 2


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_hostile_files_are_refused(stats, tmp_path):
    class Marker:
        def __reduce__(self):
            return (open, (str(tmp_path / 'marker'), 'w'))

    path = tmp_path / 'stats.npz'
    header = np.frombuffer(b'{"format": 2, "fingerprint": "", "groups": ["all"]}', np.uint8)
    bomb = tmp_path / 'bomb.npz'
    np.savez_compressed(bomb, header=header, **{'0/0/count': np.zeros(10**6)})
    np.save(tmp_path / 'plain.npy', np.zeros(3))
    with zipfile.ZipFile(tmp_path / 'text.zip', 'w') as archive:
        archive.writestr('header.npy', 'no array')
    for file in (
        write(path, header=np.array([Marker()], object)),
        bomb, tmp_path / 'plain.npy', tmp_path / 'text.zip',
        write(tmp_path / 'a.npz', weights=np.zeros(3)),
        write(tmp_path / 'b.npz', header=header),
        write(tmp_path / 'c.npz', header=header, **{'0/0/count': np.zeros(3)}),
        write(tmp_path / 'd.npz', header=header, **{'7/0/count': np.zeros(3)}),
        write(tmp_path / 'e.npz', header=np.frombuffer(b'[1]', np.uint8)),
        write(tmp_path / 'f.npz', header=np.frombuffer(b'{"format": 99}', np.uint8)),
    ):
        with pytest.raises(ValueError, match=file.name):
            Stats.load(file)
    assert not (tmp_path / 'marker').exists()
