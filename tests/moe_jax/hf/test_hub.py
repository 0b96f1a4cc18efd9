"""Models named by a hub id, adapters and paths that are none: said by every command and in Python.
"""

import json
import shutil
import sys
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects

import moe_jax
from moe_jax.cli import main
from moe_jax.hf import hub
from moe_jax.storage import folder as storage
from tests.moe_jax.hf import lexicon, tiny

NAME = 'some-org/Some.Model-7B'
RUN = '''
from train import Run, TrainOptions

def config():
    return Run(name='tiny', start={start!r}, tasks={{'lm-code': 1.0}},
               options=TrainOptions(steps=2, batch=2, length=8, peak_lr=1e-2, warmup=1))
'''
COMMANDS = {
    'info': ('info', 'MODEL'), 'latency': ('latency', 'MODEL'),
    'observe': ('observe', 'MODEL', '--tasks', 'lm-code', '--out', 'OUT'),
    'eval': ('eval', 'MODEL', '--tasks', 'lm-code'),
    'curve': ('curve', 'MODEL', '--tasks', 'lm-code', '--methods', 'frequency', '--out', 'OUT'),
    'lm-eval': ('lm-eval', 'MODEL', '--tasks', 'copa'),
    'convert': ('convert', 'MODEL', 'OUT', '--to', 'native'),
    'prune': ('prune', 'MODEL', '--method', 'expert_norm', '--experts', '2', '--out', 'OUT'),
    'sparsify': ('sparsify', 'MODEL', '--method', 'magnitude', '--sparsity', '0.5', '--out', 'OUT'),
    'train': ('train', 'RUN'), 'train --plan-only': ('train', 'RUN', '--plan-only'),
}


@pytest.fixture(autouse=True)
def forgotten(tmp_path, monkeypatch):
    """Nothing is remembered of other tests; relative paths are in a folder of its own."""
    hub._fetched.cache_clear()
    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    yield
    hub._fetched.cache_clear()


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """The folder that stands for a model on the hub, and the files fetched after each download."""
    source = tiny.write(tmp_path / 'hub', 'mixtral', 'grouped', shards=2)
    lexicon.write_tokenizer(source)
    for name in ('modeling_own.py', 'pytorch_model.bin', 'consolidated.00.safetensors',
                 'original/model.safetensors', 'tokenization_own.py', 'README.md', 'model.pt'):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text('junk')

    def download(name, *, allow_patterns, ignore_patterns):
        assert name == NAME
        files = [path.relative_to(source).as_posix() for path in source.rglob('*')
                 if path.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns,
                                        ignore_patterns=ignore_patterns):
            target = tmp_path / 'cache' / file
            target.parent.mkdir(exist_ok=True, parents=True)
            shutil.copyfile(source / file, target)
        fetches.append(sorted(path.name for path in (tmp_path / 'cache').iterdir()))
        return str(tmp_path / 'cache')

    fetches = []
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    return source, fetches


@pytest.fixture
def offline(monkeypatch):
    def refuse(name, **_):
        raise OSError('no route\nto the hub')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', refuse)


def said(arguments, model, tmp_path, capsys, monkeypatch):
    """The last line on stderr of a command that has to fail."""
    (tmp_path / 'run.py').write_text(RUN.format(start=str(model)))
    places = {'MODEL': str(model), 'OUT': str(tmp_path / 'out'), 'RUN': str(tmp_path / 'run.py')}
    monkeypatch.setattr(sys, 'argv', ['moe-jax', *(places.get(a, a) for a in arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1 and not (tmp_path / 'out').exists()
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.filterwarnings('ignore:.*consolidated')  # beside the plain folder alone
def test_a_hub_id_is_fetched_without_code_and_pickles(repo):
    source, fetches = repo
    (cfg, params), (same_cfg, same) = moe_jax.load(NAME), moe_jax.load(source)
    assert cfg == same_cfg == storage.config_of(NAME)
    jax.tree.map(np.testing.assert_array_equal, params, same)
    assert fetches == [['config.json'], sorted(
        ['config.json', 'generation_config.json', 'model-00001-of-00002.safetensors',
         'model-00002-of-00002.safetensors', 'model.safetensors.index.json', 'tokenizer.json',
         'tokenizer_config.json'])]


def test_a_hub_id_serves_as_like(repo, tmp_path):
    cfg, params = moe_jax.load(NAME)
    moe_jax.save(tmp_path / 'native', cfg, params, like=NAME)
    assert (tmp_path / 'native/hf/config.json').is_file()
    moe_jax.export_hf(tmp_path / 'out', cfg, params, like=NAME)
    jax.tree.map(np.testing.assert_array_equal, moe_jax.load(tmp_path / 'out')[1], params)


@pytest.mark.parametrize('fields', [{'model_type': 'llama'}, {'num_hidden_layers': 0}])
def test_weights_of_what_does_not_load_are_not_fetched(fields, repo):
    source, fetches = repo
    raw = json.loads((source / 'config.json').read_text())
    (source / 'config.json').write_text(json.dumps(raw | fields))
    with pytest.raises(ValueError, match=next(iter(fields))):
        moe_jax.load(NAME)
    assert fetches == [['config.json']]


def test_an_adapter_on_the_hub_is_not_fetched(repo):
    source, fetches = repo
    (source / 'config.json').rename(source / 'adapter_config.json')
    with pytest.raises(ValueError, match=f'{NAME}: holds an adapter .*merge_and_unload'):
        moe_jax.load(NAME)
    assert fetches == [['adapter_config.json']]


@pytest.mark.parametrize('arguments', COMMANDS.values(), ids=COMMANDS)
def test_every_command_says_that_a_hub_id_cannot_be_had(
        arguments, offline, tmp_path, capsys, monkeypatch):
    line = said(arguments, NAME, tmp_path, capsys, monkeypatch)
    assert f'{NAME}: no such folder, and as the id of a model on the Hugging Face hub it could ' \
           'not be downloaded (OSError: no route to the hub)' in line
    assert f'snapshot_download({NAME!r})' in line


@pytest.mark.parametrize('arguments', COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize('with_config', [False, True])
def test_every_command_says_that_an_adapter_is_to_be_merged(
        arguments, with_config, tmp_path, capsys, monkeypatch):
    folder = tmp_path / 'lora'
    if with_config:
        tiny.write(folder, 'mixtral', 'grouped')
        (folder / 'model.safetensors').unlink()
    folder.mkdir(exist_ok=True)
    (folder / 'adapter_config.json').write_text('{"peft_type": "LORA"}')
    line = said(arguments, folder, tmp_path, capsys, monkeypatch)
    assert f'{folder}: holds an adapter (adapter_config.json) and no model; merge it' in line
    assert 'merge_and_unload()' in line


@pytest.mark.parametrize('arguments', COMMANDS.values(), ids=COMMANDS)
def test_every_command_says_that_there_is_no_folder(
        arguments, tmp_path, capsys, monkeypatch):
    line = said(arguments, tmp_path / 'none', tmp_path, capsys, monkeypatch)
    assert f'{tmp_path / "none"}: no such folder' in line


@pytest.mark.parametrize('path', ['/a/b', '../a/b', 'a/b/c', 'a', 'work/b', '~/b', 'a b/c',
                                  'a/.b', '-a/b'])
def test_paths_are_not_looked_for_on_the_hub(path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda *_, **__: pytest.fail(path))
    Path('work').mkdir()
    with pytest.raises(FileNotFoundError, match='no such folder'):
        moe_jax.load(path)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / 'model.safetensors').write_text('')
    with pytest.raises(ValueError, match='give the folder'):
        moe_jax.load(tmp_path / 'model.safetensors')


def test_without_the_hubs_client_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(FileNotFoundError, match=r'no such folder.*pip install huggingface_hub'):
        moe_jax.load(NAME)


def test_an_adapter_beside_a_model_is_left_alone_with_a_line(tmp_path, caplog):
    folder = tiny.write(tmp_path / 'model', 'mixtral', 'grouped')
    (folder / 'adapter_config.json').write_text('{}')
    with caplog.at_level('INFO', 'moe_jax'):
        moe_jax.load(folder)
    assert any('without the adapter beside them' in line for line in caplog.messages)
