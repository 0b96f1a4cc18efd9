"""Every number that a command takes: zero, negative and not a number are refused by its flag,
before text or weights are read."""

import inspect
import typing

import pytest

import moe_jax
from moe_jax.cli import command as commands
from moe_jax.hf import load as hf_load
from moe_jax.storage import native
from tests.moe_jax.cli.test_cli import command, config  # noqa: F401  (fixtures)
from tests.moe_jax.hf import lexicon, tiny

RUN = '''
from train import Run, TrainOptions

def config():
    return Run(name='tiny', start={start!r}, tasks={{'lm-code': 1.0}},
               options=TrainOptions(steps=2, batch=2, length=8, peak_lr=1e-2, warmup=1))
'''
TASKS, OUT = ('--tasks', 'lm-code'), ('--out', 'OUT')
DROP = ('--method', 'frequency', *OUT)
# The words before a flag under test, which make a call that is right without it.
CALLS = {
    'train': ('RUN', '--plan-only'), 'observe': ('MODEL', *TASKS, *OUT),
    'prune': ('MODEL', *DROP, '--experts', '2', '--layerwise', *TASKS),
    'sparsify': ('MODEL', '--method', 'wanda', *OUT, '--sparsity', '0.5', '--layerwise', *TASKS),
    'curve': ('MODEL', *TASKS, '--methods', 'frequency', *OUT), 'eval': ('MODEL', *TASKS),
    'latency': ('MODEL',), 'convert': ('MODEL', 'OUT', '--to', 'native'),
    'lm-eval': ('MODEL', *TASKS), 'study': ('STUDY',), 'info': ('tiny',),
}
AMOUNTS = ('experts', 'ratio', 'mass', 'parameters', 'memory')  # exactly one is given
MAY_BE_ZERO = {('lm-eval', 'num_fewshot'), ('info', 'experts'), ('latency', 'experts'),
               ('curve', 'tolerance'), ('prune', 'ratio'), ('prune', 'floor'),
               ('sparsify', 'sparsity')}
IS_TEXT = {'parameters': int, 'memory': int}  # sizes with units


def numbers(function, owner=None):
    """(name, int or float) of every number among a function's flags, of its dataclasses too."""
    hints = typing.get_type_hints(owner or function, include_extras=True)
    names = hints if owner else inspect.signature(function).parameters
    for name in names:
        kinds = set(leaves(hints[name]))
        inner = [kind for kind in kinds if hasattr(kind, '__dataclass_fields__')]
        if inner:
            yield from numbers(function, inner[0])
        elif name in IS_TEXT or kinds & {int, float}:
            yield name, IS_TEXT.get(name, float if float in kinds else int)


def leaves(hint):
    """The plain types in a hint, those of unions, tuples and annotations."""
    if isinstance(hint, typing.TypeVar):
        return
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal or not arguments:
        yield hint
        return
    if typing.get_origin(hint) is typing.Annotated:
        arguments = arguments[:1]
    for argument in arguments:
        yield from leaves(argument)


FLAGS = [(name, flag, kind) for name, command_ in commands.COMMANDS.items()
         for flag, kind in numbers(commands._function(command_))]


def test_the_flags_are_found():
    assert {('convert', 'shard_gb', float), ('observe', 'tokens', int), ('lm-eval', 'batch', int),
            ('prune', 'ratio', float), ('prune', 'memory', int), ('prune', 'tokens', int),
            ('sparsify', 'sparsity', float), ('curve', 'tolerance', float),
            ('latency', 'parallel', int), ('train', 'efficiency', float),
            ('info', 'tokens', int), ('study', 'seeds', int)} <= set(FLAGS)
    assert {name for name, _, _ in FLAGS} == CALLS.keys()


@pytest.fixture
def places(tmp_path, config):  # noqa: F811
    model = tiny.write(tmp_path / 'model', 'qwen3_moe', 'wide heads')
    lexicon.write_tokenizer(model)
    (tmp_path / 'run.py').write_text(RUN.format(start=str(model)))
    return {'MODEL': str(model), 'OUT': str(tmp_path / 'out'), 'RUN': str(tmp_path / 'run.py'),
            'STUDY': str(config())}


@pytest.mark.parametrize(('name', 'flag', 'kind'), FLAGS)
def test_what_is_no_number_of_things_is_refused_by_its_flag(
        name, flag, kind, command, places, tmp_path, monkeypatch):  # noqa: F811
    def closed(*_, **__):
        raise AssertionError('too late: this reads weights')

    for module in (hf_load, native):
        monkeypatch.setattr(module, 'load', closed)
    before = [places.get(word, word) for word in CALLS[name]]
    if name == 'prune' and flag in AMOUNTS:
        at = before.index('--experts')
        del before[at:at + 2]
    option = '--' + flag.replace('_', '-')
    values = ['-1'] + ['0'] * ((name, flag) not in MAY_BE_ZERO)
    for value in values + (['nan', 'inf'] if kind is float else []):
        assert command(name, *before, option, value) == 1, value
        assert 'too late' not in command.err and 'Traceback' not in command.err
        assert flag in command.err.replace('-', '_') and value in command.err, command.err
        assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('arguments', 'says'), [
    (('train', 'RUN', '--plan-only', '--peak', 'PEAK'), 'four positive numbers'),
    (('latency', 'tiny', '--peaks', 'PEAK'), 'four positive numbers')])
@pytest.mark.parametrize('size', ['0', '-1', 'nan', 'inf', 'x'])
def test_numbers_within_a_text_are_held_to_the_same(
        arguments, says, size, command, places):  # noqa: F811
    words = places | {'PEAK': f'1e15,{size},3e12,4e11'}
    assert command(*(words.get(word, word) for word in arguments)) == 1
    assert says in command.err and size in command.err


@pytest.mark.parametrize('size', [0, -1, 1.5, float('nan'), True])
def test_the_bytes_of_an_exports_files_are_a_number_too(size, places, tmp_path):
    cfg, params = moe_jax.load(places['MODEL'])
    with pytest.raises(ValueError, match=rf'shard_bytes={size!r}: must be an integer, at least 1'):
        moe_jax.export_hf(tmp_path / 'out', cfg, params, like=places['MODEL'], shard_bytes=size)
    assert not (tmp_path / 'out').exists()
