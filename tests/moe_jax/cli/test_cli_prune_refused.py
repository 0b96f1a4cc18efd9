"""`moe-jax prune`: what cannot be is refused before weights are read, with nothing written."""

import pytest

import moe_jax
import prune
from moe_jax.base.tree import count_bytes
from moe_jax.calibration.stats import Stats
from moe_jax.cli import prune as commands_prune
from tests.moe_jax.cli import prune_case
from tests.moe_jax.cli.prune_case import HIDDEN, LAYERS, TOPK, WIDTH

REFUSED = {
    '--method reap': ('exactly one', 'none'),
    '--method reap --experts 3 --ratio 0.5': ('exactly one', 'experts', 'ratio'),
    '--method reap --experts 2 3 4': ('3 entries', '2 MoE layers'),
    '--method reap --experts 1': ('cannot keep 1', '2 (topk', 'clamp'),
    '--method reap --ratio 1': ('ratio=1', '[0, 1)'),
    '--method reap --mass 0': ('mass=0', '(0, 1]'),
    '--method reap --experts 3 --floor 7': ('floor=7',),
    '--method reap --parameters 1k': ('parameters=1,000 is too small', 'the least is'),
    '--method reap --parameters 9k --spread global': ('too small', '4 experts in all'),
    '--method reap --memory 30kB': ('memory=30,000 is too small',),
    '--method reap --memory 24Gb': ('--memory 24Gb', 'GB', 'GiB'),
    '--method reap --parameters many': ('--parameters many', 'k, M, B'),
    '--method raep --experts 3': ("'raep'", "'reap'"),
    '--method uncurl --experts 3 --options centre=none': ("'center'",),
    '--method reap --experts 3 --group three': ("'three'", 'one, two'),
    '--method hc_smoe --experts 3': ('dense_output_sum', 'observe again', 'dense'),
    '--method uncurl --experts 3 --gates preserve_mass': ('methods that drop', "'uncurl'"),
    '--method uncurl --mass 0.5': ('mass=', 'this method has none'),
    '--method naee --experts 3 --spread global': ("spread='global'", 'this method has none'),
    '--method router_change --experts 3': ('two checkpoints', 'prune.plan'),
    '--method reap --experts 3 --tasks boolq': ('--tasks', '--layerwise', '--stats'),
    '--method reap --experts 3 --layerwise --tasks boolq': ('--layerwise', 'leave --stats out'),
}
LAYERWISE_REFUSED = {
    '--method reap --experts 3': ('give --tasks',),
    '--method reap --mass 0.5 --tasks boolq': ('mass=0.5', 'layer by layer'),
    '--method reap --experts 3 --spread share --tasks boolq': ("spread='share'",),
    '--method reap --experts 3 --first-layer keep --tasks boolq': ("first_layer='keep'",),
    '--method random --experts 3 --tasks boolq': ('reads no statistics',),
    '--method reap --experts 3 --targets --tasks boolq': ('does not reconstruct',),
    '--method reap --experts 3 --group quiz --tasks boolq': ('--group quiz', 'boolq'),
    '--method reap --experts 3 --tasks bolq': ("no task 'bolq'", "'boolq'"),
    '--method reap --parameters 1k --tasks boolq': ('too small',),
}


@pytest.fixture
def refused(monkeypatch, tmp_path, capsys):
    """Runs `moe-jax prune`: one line that says the words, no weights read, nothing written."""
    def closed(*_, **__):
        raise AssertionError('too late: this reads weights')

    def run(source, *arguments, says):
        for name in ('moe_jax.storage.folder.load', 'moe_jax.hf.load.load'):
            monkeypatch.setattr(name, closed)
        out = tmp_path / 'small'
        assert prune_case.run(monkeypatch, 'prune', source, *arguments, '--out', out) == 1
        said = capsys.readouterr().err
        assert said.startswith('moe-jax: ') and len(said.splitlines()) == 1, said
        assert not [word for word in says if word not in said], said
        assert not list(tmp_path.iterdir())
    return run


@pytest.mark.parametrize('flags', REFUSED)
def test_refused_before_weights_are_read(refused, source, stats, flags):
    refused(source, *flags.split(), '--stats', stats, says=REFUSED[flags])


@pytest.mark.parametrize('flags', LAYERWISE_REFUSED)
def test_layerwise_refused_before_weights_are_read(refused, source, flags):
    refused(source, *flags.split(), '--layerwise', says=LAYERWISE_REFUSED[flags])


def test_statistics_that_are_not_there(refused, source):
    refused(source, '--method', 'reap', '--experts', '3', says=('moments', 'observe'))
    refused(source, '--method', 'random', '--experts', '3', '--protect', 'super',
            says=('element_max',))
    refused(source, '--method', 'random', '--experts', '3', '--group', 'one', says=('--stats',))


def test_a_native_model_in_another_dtype_and_a_merged_one(
        refused, source, model, stats, tmp_path_factory):
    cfg, params = model
    folder = tmp_path_factory.mktemp('native')
    moe_jax.save(folder / 'model', cfg, params)
    least = count_bytes(params) - LAYERS * 4 * 4 * (3 * WIDTH * HIDDEN + WIDTH)
    refused(folder / 'model', '--method', 'reap', '--stats', stats, '--memory', str(least - 1),
            says=(f'the least is {least:,}',))
    rest = LAYERS * TOPK * 2 * WIDTH  # two more bytes for each number of the routers
    refused(folder / 'model', '--method', 'reap', '--stats', stats, '--dtype', 'bfloat16',
            '--memory', str(least // 4), says=(f'the least is {least // 2 + rest:,}',))
    refused(folder / 'model', '--method', 'reap', '--stats', stats, '--experts', '3', '--to', 'hf',
            says=('did not come from a Hugging Face checkpoint',))
    merged = prune.apply(params, cfg, prune.plan(
        'm_smoe', Stats.load(stats), params, cfg, experts=3, router_init='alias'))
    moe_jax.save(folder / 'merged', *merged[::-1])
    refused(folder / 'merged', '--method', 'random', '--experts', '2', says=('already share',))


@pytest.mark.parametrize(('name', 'text', 'size'), [
    ('parameters', '1.2B', 1_200_000_000), ('parameters', '900M', 900_000_000),
    ('parameters', '1,234', 1234), ('memory', '24GB', 24_000_000_000),
    ('memory', '0.5GiB', 2**29), ('memory', '16 MB', 16_000_000), ('memory', '0.0015kB', 1),
])
def test_sizes(name, text, size):
    assert commands_prune._size(name, text) == size


@pytest.mark.parametrize('text', ['', '-1', '1e9', '1.B', 'B', '1KB', '1.2.3'])
def test_no_sizes(text):
    with pytest.raises(ValueError, match='give a number, or one with a unit of'):
        commands_prune._size('parameters', text)
