"""`moe-jax sparsify`: every flag is the keyword of prune.sparsify, and the model what it makes."""

import inspect
import typing

import jax
import numpy as np
import pytest

import moe_jax
import prune
from moe_jax.calibration.stats import Stats
from moe_jax.cli.shared import model_and_tasks
from moe_jax.hf.folder import is_hf
from moe_jax.storage import native
from prune.weights.zeros import Zeros
from tests.moe_jax.cli import prune_case

PLANS = {
    '--method wanda': {},
    '--method wanda --sparsity 0.3 --scope layer': {'sparsity': 0.3, 'scope': 'layer'},
    '--method moe_pruner --pattern 2:4': {'pattern': (2, 4)},
    '--method lamp --sparsity 0.6': {'sparsity': 0.6},
    '--method wanda --leaves up down --group two': {'leaves': ('up', 'down'), 'group': 'two'},
    '--method random_weights --options seed=4': {'seed': 4},
}


def assert_same_masks(found, wanted):
    assert dict(found.options) == dict(wanted.options) and found.model == wanted.model
    for i, layer in wanted.layers.items():
        for kind in ('masks', 'weights'):
            jax.tree.map(np.testing.assert_array_equal, getattr(found.layers[i], kind),
                         getattr(layer, kind))


@pytest.mark.parametrize('flags', PLANS)
def test_the_flags_are_the_keywords_of_sparsify(
        command, source, model, stats, tmp_path, flags, capsys):
    assert command('sparsify', source, *flags.split(), '--stats', stats, '--out',
                   tmp_path / 's') == 0
    printed = capsys.readouterr().out
    cfg, params = model
    method = flags.split()[1]
    wanted = prune.sparsify(method, Stats.load(stats), params, cfg, **PLANS[flags])
    assert_same_masks(prune.Plan.load(tmp_path / 's/plan.npz'), wanted)
    found_cfg, found = moe_jax.load(tmp_path / 's')
    assert found_cfg == cfg and wanted.describe() in printed
    jax.tree.map(np.testing.assert_array_equal, found, prune.apply(params, cfg, wanted)[0])
    assert native.load_lineage(tmp_path / 's') == {
        'method': method, 'options': dict(wanted.options), 'of': str(source)}
    assert (tmp_path / 's/tokenizer.json').exists()


def test_without_statistics_and_for_transformers(command, source, model, tmp_path):
    assert command('sparsify', source, '--method', 'magnitude', '--out', tmp_path / 's', '--to',
                   'hf') == 0
    assert is_hf(tmp_path / 's') and (tmp_path / 's/plan.npz').exists()
    shares = prune.sparsity(moe_jax.load(tmp_path / 's')[1])
    assert shares == {i: dict.fromkeys(('gate', 'up', 'down'), 0.5) for i in range(2)}


@pytest.mark.full
def test_layerwise_is_sparsify_layerwise_on_the_tasks(command, source, texts, tmp_path, capsys):
    out, tasks = tmp_path / 'sparse', ('lm-harbour', 'lm-ledger')
    assert command('sparsify', source, '--layerwise', '--tasks', *tasks, '--tokens', '96', '--data',
                   texts, '--method', 'moe_pruner', '--pattern', '2:4', '--out', out) == 0
    assert 'layer 1 of 2\nlayer 2 of 2\nmoe_pruner' in capsys.readouterr().out
    cfg, params, encoded = model_and_tasks(source, tasks, texts)
    batches = [{k: v[:3] for k, v in task.train.items()} | {'group': task.name}
               for task in encoded]  # 96 tokens are 3 rows of 32
    found = prune.sparsify_layerwise('moe_pruner', params, cfg, batches, pattern=(2, 4))
    assert_same_masks(prune.Plan.load(out / 'plan.npz'), found.plan)
    jax.tree.map(np.testing.assert_array_equal, moe_jax.load(out)[1], found.params)
    assert native.load_lineage(out)['layerwise']['tasks'] == list(tasks)


REFUSED = {
    '--method wnda': ("'wnda'", "'wanda'"),
    '--method frequency': ('no method for weights', "'frequency'"),
    '--method wanda --sparsity 1': ('sparsity=1.0', '[0, 1)'),
    '--method wanda --pattern 2-4': ('--pattern 2-4', '2:4'),
    '--method wanda --pattern 2:5': ('16 inputs', 'divide by 5'),
    '--method wanda --pattern 2:4 --scope layer': ("scope='layer'",),
    '--method wanda --leaves dwon': ("'dwon'", "'down'"),
    '--method wanda --options min_token=3': ("'min_token'", "'min_tokens'"),
    '--method wanda --options sparsity=0.9': ("no option 'sparsity'",),
    '--method wanda --group three': ("'three'", 'one, two'),
    '--method sparsegpt': ("'input_gram'", 'grams=True'),
    '--method sparsegpt --scope global': ("scope='global'", 'every output by itself'),
    '--method gblm': ("'grad_abs/gate'", 'gradients=True'),
    '--method wanda --tasks boolq': ('--tasks', '--layerwise', '--stats'),
    '--method wanda --layerwise --tasks boolq': ('--layerwise', 'leave --stats out'),
}
LAYERWISE_REFUSED = {
    '--method wanda': ('give --tasks',),
    '--method lamp --tasks boolq': ("scope='global'",),
    '--method magnitude --tasks boolq': ('reads no statistics',),
    '--method gblm --tasks boolq': ('reads gradients',),
    '--method wanda --group quiz --tasks boolq': ('--group quiz', 'boolq'),
    '--method wanda --tasks bolq': ("no task 'bolq'", "'boolq'"),
}


@pytest.fixture
def refused(monkeypatch, tmp_path, capsys):
    """Runs `moe-jax sparsify`: one line that says the words, no weights read, nothing written."""
    def closed(*_, **__):
        raise AssertionError('too late: this reads weights')

    def run(source, *arguments, says):
        for name in ('moe_jax.storage.folder.load', 'moe_jax.hf.load.load'):
            monkeypatch.setattr(name, closed)
        out = tmp_path / 'sparse'
        assert prune_case.run(monkeypatch, 'sparsify', source, *arguments, '--out', out) == 1
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


def test_statistics_that_are_not_there_and_models_with_no_other_form(
        refused, source, model, stats, tmp_path_factory):
    refused(source, '--method', 'wanda', says=('needs the statistics', 'input_square'))
    cfg, params = model
    folder = tmp_path_factory.mktemp('native')
    moe_jax.save(folder / 'model', cfg, params)
    refused(folder / 'model', '--method', 'magnitude', '--to', 'hf',
            says=('did not come from a Hugging Face checkpoint',))
    merged = prune.apply(params, cfg, prune.plan(
        'm_smoe', Stats.load(stats), params, cfg, experts=3, router_init='alias'))
    moe_jax.save(folder / 'merged', *merged[::-1], like=source)
    refused(folder / 'merged', '--method', 'magnitude', '--to', 'hf',
            says=('share experts', '--to native'))


def test_the_flags_and_choices_are_those_of_sparsify(command, capsys):
    hints = typing.get_type_hints(prune.sparsify)
    keywords = {p.name: hints[p.name] for p in inspect.signature(prune.sparsify).parameters.values()
                if p.kind is p.KEYWORD_ONLY}
    assert typing.get_type_hints(Zeros) | {'group': hints['group']} == keywords
    assert command('sparsify', '--help') == 0
    said = capsys.readouterr().out
    assert not [name for name in keywords if f'--{name} ' not in said]
    assert 'Set a share of the weights' in said and 'some of gate, up and down' in said
