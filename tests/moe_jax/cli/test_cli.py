"""The command line: one clear message for every bad input, and nothing written for it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

import moe_jax
import prune
from moe_jax.cli import main
from moe_jax.data import corpus, fetch

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / 'configs/expert_count/cpu_small.py'
HEAD = """
import dataclasses
from moe_jax import Config, preset
from moe_jax.config.presets import tiny
from moe_jax.study.expert_count.spec import Method, Recovery, Study
from train import TrainOptions

OPTIONS = TrainOptions(steps=2, batch=2, length=32, warmup=1)
STUDY = Study(name='s', description='', model=tiny(), experts=(2, 4), pairs=((4, 2),),
              main=Method(label='uncurl', name='uncurl'), rivals=(), rival_pairs=(),
              tasks=('lm-code',), pretrain=OPTIONS,
              recovery=Recovery(warm=OPTIONS, prefinetune=OPTIONS, finetune=OPTIONS))
"""


class Command:
    """Runs `moe-jax` in this process and keeps what it said."""

    def __init__(self, monkeypatch, capsys) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.out = self.err = ''

    def __call__(self, *arguments) -> int:
        self.monkeypatch.setattr(sys, 'argv', ['moe-jax', *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        self.out, self.err = self.capsys.readouterr()
        return code


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """In an empty folder, with an empty cache, and with every way to fetch or read text closed."""
    def closed(*_, **__):
        raise AssertionError('too late: this reads or fetches text')

    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    monkeypatch.setenv('MOE_JAX_CACHE', str(tmp_path / 'cache'))
    monkeypatch.delenv('MOE_JAX_TRACEBACK', raising=False)
    monkeypatch.setattr(corpus, 'load', closed)
    monkeypatch.setattr(fetch, '_download', closed)
    return Command(monkeypatch, capsys)


@pytest.fixture
def config(tmp_path):
    """Writes a config file whose config() returns an expression on STUDY."""
    def write(expression: str = 'STUDY') -> Path:
        path = tmp_path / 'config.py'
        path.write_text(f'{HEAD}\n\ndef config():\n    return {expression}\n')
        return path
    return write


def refused(command: Command, *arguments, says: tuple[str, ...]) -> None:
    """One line that says all of `says`, exit code 1, no traceback, nothing written."""
    assert command(*arguments) == 1
    assert command.err.startswith('moe-jax: ') and 'Traceback' not in command.err
    assert len(command.err.splitlines()) == 1, command.err
    for part in says:
        assert part in command.err
    assert not list(Path.cwd().iterdir()) and not command.out


METHOD = "STUDY.replace(main=Method(label='m', name={!r}, options={!r}))"
BAD_STUDIES = {
    'fewer than topk': ('STUDY.replace(model=tiny().replace(topk=2), pairs=((4, 1),))',
                        ('config.py:', 'pair 4->1', 'keep 2 to 3 experts', 'topk=2')),
    'zero': ('STUDY.replace(pairs=((4, 0),))', ('pair 4->0', 'keep 1 to 3')),
    'more than there are': ('STUDY.replace(pairs=((4, 5),))', ('pair 4->5', 'keep 1 to 3')),
    'zero to pretrain': ('STUDY.replace(experts=(0, 2, 4))', ('(0, 2, 4)', 'at least 1')),
    'study field': ('STUDY.replace(task=())', ("no field 'task'", "did you mean 'tasks'?")),
    'model field': ('STUDY.replace(model=tiny().replace(head=1))',
                    ("no field 'head'", "did you mean 'heads'?")),
    'option field': ('dataclasses.replace(OPTIONS, step=3)',
                     ("no field 'step'", "did you mean 'steps'?")),
    'option value': ("dataclasses.replace(OPTIONS, schedule='cosin')",
                     ("schedule='cosin'", "did you mean 'cosine'?")),
    'preset': ("STUDY.replace(model=preset('tini'))",
               ("no preset 'tini'", "did you mean 'tiny'?")),
    'raises': ('STUDY.replace(seeds=1 // 0)', ('config.py:', 'ZeroDivisionError')),
    'no study': ('3', ('config() returned int', 'Study')),
    'method': (METHOD.format('uncrl', ()), ("method 'm'", "'uncrl'", "did you mean 'uncurl'?")),
    'method option': (METHOD.format('uncurl', (('centre', 'none'),)),
                      ("no option 'centre'", "did you mean 'center'?")),
    'method value': (METHOD.format('uncurl', (('router_init', 'randm'),)),
                     ("router_init='randm'", "did you mean 'random'?")),
    'task': ("STUDY.replace(tasks=('bolq',))", ("no task 'bolq'", "did you mean 'boolq'?")),
    'vocabulary': ('STUDY.replace(model=tiny().replace(vocab=99))',
                   ('vocab=99', 'at least 258')),
    'positions': ('STUDY.replace(model=tiny().replace(positions=16))', ('32', '16 positions')),
}


@pytest.mark.parametrize('case', BAD_STUDIES)
def test_a_bad_study_is_refused_in_one_line(command, config, case):
    expression, says = BAD_STUDIES[case]
    refused(command, 'study', config(expression), '--out', 'run', says=says)


def test_seeds(command, config):
    for seeds in ('0', '-3'):
        refused(command, 'study', config(), '--seeds', seeds, says=(f'--seeds {seeds}', 'least 1'))
    assert command('study', config(), '--seeds', 'many') == 2
    assert '--seeds' in command.err and 'many' in command.err


def test_cost_is_printed_and_nothing_run(command, config):
    assert command('study', config(), '--cost') == 0
    assert 'pretrain 4 experts' in command.out and not command.err
    assert not list(Path.cwd().iterdir())


def test_a_missing_or_empty_config(command, tmp_path):
    refused(command, 'study', 'none.py', says=('none.py: no such config file', 'configs/'))
    (tmp_path / 'empty.py').write_text('"""Nothing."""')
    refused(command, 'study', tmp_path / 'empty.py', says=('no function config()',))
    refused(command, 'study', tmp_path / 'empty.py', '--smoke', says=('no function smoke()',))


def test_a_data_folder_that_is_not_there(command, config):
    refused(command, 'study', config(), '--data', 'nowhere',
            says=('--data nowhere: no such folder', 'DIR/<domain>/*.txt'))
    refused(command, 'data', 'fetch', '--data', 'nowhere', says=('nowhere is not a folder',))


def test_an_out_folder_that_cannot_be_used(command, config, tmp_path):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other/notes').write_text('mine')
    for out, says in (('file', 'is a file'), ('other', 'not empty and holds no study'),
                      ('file/run', 'Not a directory: no study can be written there')):
        refused(command, 'study', config(), '--out', tmp_path / out,
                says=(str(tmp_path / out), says, '--out'))
    assert (tmp_path / 'file').read_text() == (tmp_path / 'other/notes').read_text() == 'mine'
    assert [path.name for path in (tmp_path / 'other').iterdir()] == ['notes']


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_an_out_folder_without_permission(command, config, tmp_path):
    (tmp_path / 'shut').mkdir(mode=0o500)
    refused(command, 'study', config(), '--out', tmp_path / 'shut/run',
            says=('shut/run', 'Permission denied', '--out'))


def write_texts(folder: Path, text: str, files: int = 3) -> Path:
    for domain in ('meadow', 'quarry'):
        (folder / domain).mkdir(parents=True)
        for number in range(files):
            (folder / domain / f'{number}.txt').write_text(text and f'{text} {number}')
    return folder


@pytest.mark.parametrize(('text', 'files'), [('', 3), ('stones', 2)])
def test_texts_that_make_no_corpus(config, tmp_path, monkeypatch, capsys, text, files):
    monkeypatch.setenv('MOE_JAX_CACHE', str(tmp_path / 'cache'))
    command, texts = Command(monkeypatch, capsys), write_texts(tmp_path / 'texts', text, files)
    study = config("STUDY.replace(tasks=('lm-meadow',))")
    assert command('study', study, '--data', texts, '--out', tmp_path / 'run') == 1
    assert 'give at least 3 files per domain' in command.err and 'Traceback' not in command.err
    assert [p.name for p in (tmp_path / 'run').iterdir()] == ['.lock']


@pytest.mark.parametrize(('rows', 'says'), [
    ([], ('quiz', 'train')),
    ([{'context': ' ', 'choices': ['a', 'b'], 'label': 0}], ('train.jsonl', 'context')),
    ([{'context': 'x', 'choices': ['a', 'b'], 'label': 2}], ('train.jsonl', 'label')),
])
def test_a_task_without_usable_examples(config, tmp_path, monkeypatch, capsys, rows, says):
    monkeypatch.setenv('MOE_JAX_CACHE', str(tmp_path / 'cache'))
    command, texts = Command(monkeypatch, capsys), write_texts(tmp_path / 'texts', 'hay')
    (texts / 'quiz').mkdir()
    for part in ('train', 'validation'):
        (texts / f'quiz/{part}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    study = config("STUDY.replace(tasks=('quiz',))")
    assert command('study', study, '--data', texts, '--out', tmp_path / 'run') == 1
    assert all(part in command.err for part in says) and 'Traceback' not in command.err
    assert [p.name for p in (tmp_path / 'run').iterdir()] == ['.lock']


def test_no_network_is_said_within_seconds(config, tmp_path):
    dead = {'PIP_INDEX_URL': 'http://127.0.0.1:9/simple', 'MOE_JAX_CACHE': str(tmp_path / 'cache')}
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith('_proxy')}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, '-c', 'from moe_jax.cli import main; main()', 'study', str(config()),
         '--out', str(tmp_path / 'run')],
        env=environment | dead, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert 'no network: 127.0.0.1:9 cannot be reached' in done.stderr
    assert '--data DIR' in done.stderr
    assert [p.name for p in (tmp_path / 'run').iterdir()] == ['.lock']
    assert time.monotonic() - start < 30  # a loaded machine imports slowly


# The other commands.


def test_report_needs_records(command, tmp_path):
    refused(command, 'report', tmp_path / 'none', says=('records.jsonl: no records here', '--out'))


def test_info_counts_a_preset_and_a_saved_model(command, tmp_path):
    assert command('info', 'tiny', '--experts', '8') == 0
    assert 'tiny' in command.out and 'active per token' in command.out
    cfg = moe_jax.preset('tiny', experts=3)
    params = jax.jit(moe_jax.init, static_argnums=0)(cfg, jax.random.key(0))
    moe_jax.save(tmp_path / 'model', cfg, params)
    assert command('info', tmp_path / 'model') == 0
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert f'{total:,}' in command.out
    assert command('info', 'tiny', '--experts', '0') == 0 and 'dense' in command.out


def test_info_refuses(command, tmp_path):
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model/config.json').write_text('{"vocab": 3')
    for arguments, says in {
            ('gpt3',): ("no preset 'gpt3'", 'valid: tiny'),
            ('cpu_smal',): ("did you mean 'cpu_small'?",),
            ('tiny', '--experts', '-1'): ('experts=-1', '0 (dense) to 65536'),
            ('tiny', '--tokens', '0'): ('tokens=0', '1 to 128'),
            ('tiny', '--tokens', '129'): ('tokens=129', '1 to 128'),
            (tmp_path / 'none',): ('none: no such folder',),
            (tmp_path / 'model',): ('model/config.json', 'not JSON')}.items():
        refused(command, 'info', *arguments, says=says)


@pytest.mark.parametrize('size', ['0', '-1', 'nan', 'inf'])
def test_a_size_of_files_that_is_none_is_refused_before_anything_is_read(command, tmp_path, size):
    assert command('convert', tmp_path / 'model', tmp_path / 'out', '--to', 'hf',
                   '--shard-gb', size) == 1
    assert '--shard-gb' in command.err and 'above 0' in command.err


def test_methods_lists_them_all(command):
    assert command('methods') == 0
    for row in (*prune.methods(), *prune.weight_methods()):
        assert all(name in command.out for name in (row.name, *row.needs))
    assert {len(line) for line in command.out.splitlines()} <= {0, 80}  # not cut, not too wide


@pytest.mark.parametrize('name', ['study', 'report', 'info', 'methods', 'data'])
def test_help_names_the_options(command, name):
    assert command(name, '--help') == 0
    assert 'usage: moe-jax' in command.out.replace('\n', ' ')


def test_unknown_commands_and_options_exit_with_2(command):
    assert command('studdy') == 2 and 'study' in command.err
    assert command('study', SHIPPED, '--seedz', '2') == 2 and 'seedz' in command.err


def test_the_traceback_is_there_for_those_who_ask(command, monkeypatch):
    monkeypatch.setenv('MOE_JAX_TRACEBACK', '1')
    with pytest.raises(FileNotFoundError):
        command('study', 'none.py')
