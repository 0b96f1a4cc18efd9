"""Folders whose files are missing, swapped or not theirs; nothing outside is opened, nothing runs.
"""

import ctypes
import hashlib
import json
import os
import pickle
import re
import shutil
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import moe_jax
from moe_jax.hf import shards
from moe_jax.hf.load import open_folder
from tests.moe_jax.hf import tiny

FILE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
PARTS = [f'model-0000{i}-of-00003.safetensors' for i in (1, 2, 3)]
NORM = 'model.norm.weight'  # in the second
ON_LINUX = pytest.mark.skipif(sys.platform != 'linux', reason='inotify tells who opens files')
OPENED, NOT_WAITING = 0x20, os.O_NONBLOCK  # IN_OPEN, IN_NONBLOCK


@pytest.fixture
def folder(tmp_path):
    return tiny.write(tmp_path / 'model', 'mixtral', 'grouped', shards=3)


@pytest.fixture
def single(tmp_path):
    return tiny.write(tmp_path / 'model', 'mixtral', 'grouped')


@pytest.fixture
def watch():
    """watch(path) is a function: whether anything, in any language, opened the file since then."""
    def start(path):
        libc = ctypes.CDLL(None, use_errno=True)
        events = libc.inotify_init1(NOT_WAITING)
        if events < 0 or libc.inotify_add_watch(events, os.fsencode(path), OPENED) < 0:
            pytest.skip('no inotify here')
        found.append(events)

        def opened():
            try:
                return bool(os.read(events, 4096))
            except BlockingIOError:
                return False
        return opened

    found = []
    yield start
    for events in found:
        os.close(events)


def weight_map(folder, change):
    """Let `change` alter the index's map of tensors to files."""
    index = json.loads((folder / INDEX).read_text())
    change(index['weight_map'])
    (folder / INDEX).write_text(json.dumps(index))


def refusal(folder):
    with pytest.raises(ValueError, match=re.escape(str(folder))) as told:
        moe_jax.load(folder)
    return str(told.value)


def assert_same(folder, other):
    (cfg, params), (same_cfg, same) = moe_jax.load(folder), moe_jax.load(other)
    assert cfg == same_cfg
    jax.tree.map(np.testing.assert_array_equal, params, same)


def test_all_missing_shards_are_told_at_once(folder):
    for name in PARTS[:2]:
        (folder / name).unlink()
    assert f'{PARTS[0]} is missing; {PARTS[1]} is missing' in refusal(folder)


def test_a_stray_shard_is_told_and_not_read(folder, tmp_path):
    (folder / 'consolidated.safetensors').write_bytes(b'junk')
    with pytest.warns(UserWarning, match=r'consolidated\.safetensors not part of the model'):
        assert_same(folder, tiny.write(tmp_path / 'plain', 'mixtral', 'grouped'))


@pytest.mark.parametrize(('change', 'message'), [
    (lambda index: index.update({'model.extra': PARTS[0]}),
     f'model.extra is not in {PARTS[0]}, where the index says it is'),
    (lambda index: index.pop(NORM), f'{NORM} is in {PARTS[1]}, but not in the index'),
    (lambda index: index.update({NORM: PARTS[0]}),
     f'{NORM} is in {PARTS[1]}, the index says {PARTS[0]}'),
])
def test_an_index_that_is_wrong_about_a_tensor_is_refused(folder, change, message):
    weight_map(folder, change)
    assert message in refusal(folder)


def test_one_tensor_in_two_shards_is_refused(folder):
    found = load_file(folder / PARTS[0])
    save_file(found | {NORM: np.ones(24, 'float32')}, folder / PARTS[0])
    assert f'{NORM} is in {PARTS[0]} and in {PARTS[1]}' in refusal(folder)


def test_swapped_shards_are_refused(folder):
    (folder / PARTS[0]).rename(folder / 'aside')
    (folder / PARTS[2]).rename(folder / PARTS[0])
    (folder / 'aside').rename(folder / PARTS[2])
    message = refusal(folder)
    assert f'lm_head.weight is in {PARTS[2]}, the index says {PARTS[0]}' in message
    assert re.search(r'\(likewise \d+ more: .*and \d+ more\)$', message)


def test_all_faults_of_a_folder_are_told_at_once(folder):
    (folder / PARTS[0]).unlink()
    (folder / PARTS[1]).write_bytes((folder / PARTS[1]).read_bytes()[:-1])
    found = load_file(folder / PARTS[2])
    save_file(found | {'blocks': np.zeros(4, np.uint8)}, folder / PARTS[2])
    weight_map(folder, lambda index: index.update({'model.extra': PARTS[2], 'x': '../x'}))
    message = refusal(folder)
    for fault in (f'{PARTS[0]} is missing', f'{PARTS[1]} is damaged', 'blocks in', "'../x'",
                  f'model.extra is not in {PARTS[2]}', 'blocks is in'):
        assert fault in message
    assert message.count(PARTS[0]) == message.count(PARTS[1]) == 1


@pytest.mark.parametrize('name', ['../secret', '/etc/passwd', 'a\0b', '', '.', '..', 'sub/x',
                                  'a\\b', '\x1b[31m', '\ud800'])
def test_an_index_names_files_of_its_folder_only(folder, name, monkeypatch):
    opened, real = [], shards.safe_open
    monkeypatch.setattr(shards, 'safe_open', lambda path, framework: opened.append(
        Path(path).name) or real(path, framework))
    weight_map(folder, lambda index: index.update({NORM: name}))
    assert f'the index names {name!r}, which is no file of this folder; refused' in refusal(folder)
    assert opened == PARTS


def outside(folder, place):
    """Put a file of the folder elsewhere, with a link to it or, for a path, the index's word."""
    target, file = folder.parent / 'secret', folder / place
    if place not in (PARTS[0], INDEX):
        file = folder / PARTS[0]
        weight_map(folder, lambda index: index.update(
            {key: place.format(target) for key, name in index.items() if name == PARTS[0]}))
    file.rename(target)
    if place in (PARTS[0], INDEX):
        file.symlink_to(Path('..') / target.name)
    return target


@ON_LINUX
@pytest.mark.parametrize('place', ['../secret', '{}', PARTS[0], INDEX])
def test_files_elsewhere_are_refused_unopened(folder, place, watch):
    target = outside(folder, place)
    opened = watch(target)
    assert 'refused' in refusal(folder)
    assert not opened()
    target.read_bytes()
    assert opened()


@ON_LINUX
@pytest.mark.parametrize('where', ['secret', 'blobs/secret', 'deep/blobs/secret'])
def test_a_single_file_elsewhere_is_refused_unopened(single, where, watch):
    target = single.parent / where
    target.parent.mkdir(parents=True, exist_ok=True)
    (single / FILE).rename(target)
    (single / 'hop').symlink_to(target)
    (single / FILE).symlink_to('hop')
    opened = watch(target)
    assert f'leads out of the folder, to {target}; refused' in refusal(single)
    assert not opened()


@ON_LINUX
def test_a_pipe_is_refused_unopened(single, watch):
    (single / FILE).unlink()
    os.mkfifo(single / FILE)
    writer = os.open(single / FILE, os.O_RDWR | os.O_NONBLOCK)  # so that no open would wait
    os.write(writer, b'\0' * 64)
    opened = watch(single / FILE)
    assert f'{FILE}: is no regular file; refused' in refusal(single)
    assert not opened()
    os.close(writer)


@pytest.mark.parametrize('target', ['/dev/zero', '/', '.', FILE, 'absent'])
def test_links_to_what_is_no_file_are_refused(single, target):
    (single / FILE).unlink()
    (single / FILE).symlink_to(target)
    assert re.search('refused|is missing', refusal(single))


@pytest.mark.parametrize('target', ['/dev/zero', '.'])
def test_a_config_that_is_no_file_is_refused(single, target):
    (single / 'config.json').unlink()
    (single / 'config.json').symlink_to(target)
    with pytest.raises(ValueError, match=r'config\.json: leads out of the folder'):
        open_folder(single)


@pytest.mark.parametrize('parts', [1, 3])
def test_the_links_of_the_hubs_cache_load(tmp_path, parts):
    plain = tiny.write(tmp_path / 'plain', 'mixtral', 'grouped', shards=parts)
    repo = tmp_path / 'models--some--model'
    (repo / 'blobs').mkdir(parents=True)
    snapshot = repo / 'snapshots' / '0123abc'
    snapshot.mkdir(parents=True)
    for file in plain.iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, repo / 'blobs' / digest)
        (snapshot / file.name).symlink_to(Path('../../blobs') / digest)
    assert_same(snapshot, plain)
    (tmp_path / 'link').symlink_to(snapshot)
    assert_same(tmp_path / 'link', plain)


@pytest.mark.parametrize('parts', [1, 3])
@pytest.mark.parametrize('digits', [40, 64])
def test_links_into_the_hubs_cache_load_from_any_folder(tmp_path, parts, digits):
    """As the hub's client made them in a folder of the user's choice."""
    plain = tiny.write(tmp_path / 'plain', 'mixtral', 'grouped', shards=parts)
    blobs, local = tmp_path / 'cache/models--some--model/blobs', tmp_path / 'local'
    blobs.mkdir(parents=True)
    local.mkdir()
    for file in plain.iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:digits]
        shutil.copyfile(file, blobs / digest)
        (local / file.name).symlink_to(blobs / digest)
    assert_same(local, plain)


@pytest.mark.parametrize('where', [
    'models--some--model/blobs/secret', 'datasets--a--b/blobs/' + 'a' * 64, 'blobs/' + 'a' * 64,
    'models--some--model/' + 'a' * 64, 'models--some--model/blobs/deep/' + 'a' * 64,
    'models--some--model/blobs/' + 'A' * 64])
def test_what_only_looks_like_the_hubs_cache_is_refused_with_the_remedy(single, where):
    target = single.parent / where
    target.parent.mkdir(parents=True, exist_ok=True)
    (single / FILE).rename(target)
    (single / FILE).symlink_to(target)
    assert f'to {target}; refused. If you trust that file, put a copy' in refusal(single)
    shutil.copytree(single, single.parent / 'copy')  # as cp -rL does
    moe_jax.load(single.parent / 'copy')


class Touch:
    """Unpickling one makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_weights_are_never_opened(single, tmp_path):
    marker, file = tmp_path / 'marker', single / 'pytorch_model.bin'
    file.write_bytes(pickle.dumps(Touch(marker)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        moe_jax.load(single)
    (single / FILE).unlink()
    with pytest.raises(FileNotFoundError, match=r'only pickled weights \(pytorch_model\.bin\).*'
                                                r'from_pretrained\(FOLDER\)\.save_pretrained'):
        moe_jax.load(single)
    assert not marker.exists()
    pickle.loads(file.read_bytes())
    assert marker.exists()


def test_a_folder_without_weights_says_what_was_looked_for(single):
    (single / FILE).unlink()
    with pytest.raises(FileNotFoundError, match=f'neither {FILE} nor {INDEX} here'):
        moe_jax.load(single)


def test_code_in_a_folder_is_never_imported(single, tmp_path):
    marker = tmp_path / 'marker'
    (single / 'modeling_own.py').write_text(f'open({str(marker)!r}, "w")')
    raw = json.loads((single / 'config.json').read_text())
    raw['auto_map'] = dict.fromkeys(('AutoConfig', 'AutoModelForCausalLM'), 'modeling_own.Own')
    (single / 'config.json').write_text(json.dumps(raw))
    assert_same(single, tiny.write(tmp_path / 'plain', 'mixtral', 'grouped'))
    assert not marker.exists() and 'modeling_own' not in sys.modules


def test_an_export_that_changed_since_is_refused(single):
    digest = hashlib.sha256((single / FILE).read_bytes()).hexdigest()
    (single / 'moe_jax.json').write_text(json.dumps({'sha256': {FILE: digest}}))
    moe_jax.load(single)
    data = bytearray((single / FILE).read_bytes())
    data[-1] ^= 1
    (single / FILE).write_bytes(data)
    assert f'damaged since it was exported: {FILE} differs. Copy it again' in refusal(single)
    (single / 'moe_jax.json').write_text(json.dumps({'sha256': {'../x': '', 'tokenizer.json': ''}}))
    assert '../x is missing; tokenizer.json is missing' in refusal(single)
    (single / 'moe_jax.json').write_text('{}')
    assert 'has no sha256 of the files' in refusal(single)
