"""Files and folders are whole or as they were before, whatever happens while they are written."""

import errno
import os

import pytest

from moe_jax.base import files


def ours(path):
    if not (path / 'mark').is_file():
        raise ValueError(f'{path}: not ours')


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def fill(path, text, **options):
    with files.replacing_folder(path, ours, size=10, what='a test', **options) as temporary:
        assert temporary.parent == path.parent and not (path / text).exists()
        (temporary / 'mark').touch()
        (temporary / text).touch()
        if text == 'fails':
            raise RuntimeError(text)


def test_a_file_appears_whole_and_keeps_its_old_content_on_an_error(tmp_path):
    path = tmp_path / 'deep' / 'a.txt'
    files.write(path, 'one')
    files.write(path, b'two')
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_text('half')
        raise RuntimeError
    assert path.read_bytes() == b'two' and names(path.parent) == ['a.txt']
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_folder_appears_whole_and_the_old_one_goes_last(tmp_path):
    path = tmp_path / 'deep' / 'model'
    fill(path, 'one')
    assert names(path) == ['mark', 'one']
    fill(path, 'two', overwrite=True)
    with pytest.raises(RuntimeError):
        fill(path, 'fails', overwrite=True)
    assert names(path) == ['mark', 'two'] and names(path.parent) == ['model']


def test_a_folder_that_is_there_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / 'model'
    path.mkdir()
    fill(path, 'one')  # an empty folder may be taken
    with pytest.raises(FileExistsError, match='choose another path or overwrite'):
        fill(path, 'two')
    (path / 'mark').unlink()
    with pytest.raises(ValueError, match='not ours'):
        fill(path, 'two', overwrite=True)
    assert names(path) == ['one'] and names(tmp_path) == ['model']


def test_too_little_space_is_told_before_and_while_writing(tmp_path):
    with (pytest.raises(files.DiskFull, match=r'a test needs .* bytes and .* free'),
          files.replacing_folder(tmp_path / 'a', ours, size=10**18, what='a test')):
        pytest.fail('entered')
    with (pytest.raises(files.DiskFull, match='ran full while writing'),
          files.replacing_folder(tmp_path / 'a', ours, size=1, what='a test')):
        raise OSError(errno.ENOSPC, 'No space left on device')
    assert not names(tmp_path)


def test_an_error_of_the_disk_names_the_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr('os.fsync', full)
    with pytest.raises(OSError, match='No space left') as error:
        files.write(tmp_path / 'a.txt', 'x')
    assert error.value.filename == str(tmp_path / 'a.txt') and not names(tmp_path)


def test_a_link_is_relative_and_moves(tmp_path):
    for name in ('one', 'two'):
        (tmp_path / name).mkdir()
        files.point(tmp_path / 'links' / 'newest', tmp_path / name)
        assert os.readlink(tmp_path / 'links' / 'newest') == f'../{name}'
    assert names(tmp_path / 'links') == ['newest']
