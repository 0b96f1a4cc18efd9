"""`moe-jax prune`: every flag is the keyword of prune.plan, and the outcome what it makes."""

import inspect
import typing

import jax
import numpy as np
import pytest

import moe_jax
import prune
from moe_jax.base.tree import count_bytes, count_params
from moe_jax.calibration.stats import Stats
from moe_jax.cli.shared import model_and_tasks
from moe_jax.storage import native
from prune.budget.amounts import Amounts
from prune.experts.common import Common
from prune.plans.arrays import ARRAYS
from tests.moe_jax.cli.prune_case import HIDDEN, LAYERS, WIDTH


def assert_same_plan(found, wanted):
    assert found.layers.keys() == wanted.layers.keys() and found.clamp == wanted.clamp
    assert dict(found.options) == dict(wanted.options) and found.model == wanted.model
    for i, layer in wanted.layers.items():
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(found.layers[i], name), getattr(layer, name))


PLANS = {
    '--experts 3': {'experts': 3},
    '--experts 5 2': {'experts': (5, 2)},
    '--ratio 0.5': {'ratio': 0.5},
    '--ratio 0.2 0.6': {'ratio': (0.2, 0.6)},
    '--mass 0.6': {'mass': 0.6},
    '--parameters 16.7k': {'parameters': 16_700},
    '--parameters 16_700 --spread share': {'parameters': 16_700, 'spread': 'share'},
    '--memory 66kB': {'memory': 66_000},
    '--memory 63KiB --spread global': {'memory': 63 * 1024, 'spread': 'global'},
    '--experts 3 --spread global': {'experts': 3, 'spread': 'global'},
    '--experts 3 --spread mass --floor 3': {'experts': 3, 'spread': 'mass', 'floor': 3},
    '--experts 3 --spread error': {'experts': 3, 'spread': 'error'},
    '--experts 3 --spread global --clamp': {'experts': 3, 'spread': 'global', 'clamp': True},
    '--experts 1 3 --clamp': {'experts': (1, 3), 'clamp': True},
    '--experts 1 --clamp': {'experts': 1, 'clamp': True},
    '--experts 3 --gates preserve_mass': {'experts': 3, 'gates': 'preserve_mass'},
    '--experts 3 --replace mean': {'experts': 3, 'replace': 'mean'},
    '--experts 3 --protect super': {'experts': 3, 'protect': 'super'},
    '--experts 3 --first-layer topk': {'experts': 3, 'first_layer': 'topk'},
    '--experts 3 --first-layer keep': {'experts': 3, 'first_layer': 'keep'},
    '--experts 3 --group two': {'experts': 3, 'group': 'two'},
    '--method mone --experts 3': {'experts': 3},
    '--method mone --experts 3 --replace none': {'experts': 3, 'replace': 'none'},
    '--method nllb --experts 3': {'experts': 3},
    '--method naee --experts 3 --options loss=sse': {'experts': 3, 'loss': 'sse'},
    '--method uncurl --experts 3 --options seed=4': {'experts': 3, 'seed': 4},
}


@pytest.mark.parametrize('flags', PLANS)
def test_the_flags_are_the_keywords_of_plan(command, source, model, stats, tmp_path, flags):
    given = flags.split()
    method = given[1] if given[0] == '--method' else 'reap'
    extra = () if given[0] == '--method' else ('--method', method)
    assert command('prune', source, *extra, *given, '--stats', stats, '--out', tmp_path / 's') == 0
    cfg, params = model
    wanted = prune.plan(method, Stats.load(stats), params, cfg, **PLANS[flags])
    assert_same_plan(prune.Plan.load(tmp_path / 's/plan.npz'), wanted)
    small, small_cfg = prune.apply(params, cfg, wanted)
    found_cfg, found = moe_jax.load(tmp_path / 's')
    assert found_cfg == small_cfg
    jax.tree.map(np.testing.assert_array_equal, found, small)


def test_sizes_are_limits(model, stats):
    """What the cases above keep is the most that fits: 3 experts a layer, not 4."""
    cfg, params = model
    each = 3 * WIDTH * HIDDEN + WIDTH
    for given, size in ({'parameters': 16_700}, count_params), ({'memory': 66_000}, count_bytes):
        small, _ = prune.apply(params, cfg, prune.plan(
            'reap', Stats.load(stats), params, cfg, **given))
        limit, unit = next(iter(given.values())), size(small) // count_params(small)
        assert size(small) <= limit < size(small) + LAYERS * each * unit


def test_the_printed_sizes_and_the_lineage(command, source, model, stats, tmp_path, capsys):
    out = tmp_path / 'small'
    assert command('prune', source, '--method', 'mone', '--ratio', '0.5', '--floor', '2', '--stats',
                   stats, '--out', out) == 0
    printed = capsys.readouterr().out
    each, total = 3 * WIDTH * HIDDEN, count_params(model[1])
    after = total - LAYERS * 3 * (each - WIDTH)  # three experts of each layer became constants
    active = total - LAYERS * 4 * each
    assert (f'parameters {total:,} -> {after:,}, active per token at most {active:,} -> {active:,}'
            in printed)
    assert 'layer 0: 6 -> 3 experts' in printed and 'dropped experts are constants' in printed
    assert count_params(moe_jax.load(out)[1]) == after
    lineage = native.load_lineage(out)
    assert lineage['budget'] == {'ratio': 0.5, 'floor': 2} and lineage['of'] == str(source)
    assert lineage['options'] == {
        'gates': 'slice', 'replace': 'mean', 'protect': 'none', 'first_layer': 'same',
        'group': None, 'spread': 'layer', **prune.options('mone')}


def test_fewer_experts_per_token_are_said(command, source, stats, tmp_path, capsys):
    for experts, says in ('1', '2 -> 1,'), ('1 3', '2 -> 1 or 2,'):
        assert command('prune', source, '--method', 'reap', '--experts', *experts.split(),
                       '--clamp', '--stats', stats, '--out', tmp_path / experts) == 0
        assert f'experts per token {says}' in capsys.readouterr().out


@pytest.mark.parametrize(('flags', 'options'), [
    ('--method reap --experts 3', {'experts': 3}),
    pytest.param('--method reap --ratio 0.5 0.2 --gates preserve_mass --group lm-ledger',
                 {'ratio': (0.5, 0.2), 'gates': 'preserve_mass', 'group': 'lm-ledger'},
                 marks=pytest.mark.full),
    pytest.param('--method naee --experts 3 --targets --reservoir 32',
                 {'experts': 3, 'targets': True, 'reservoir': 32}, marks=pytest.mark.full),
])
def test_layerwise_is_plan_layerwise_on_the_tasks(
        command, source, texts, tmp_path, capsys, flags, options):
    out, tasks = tmp_path / 'small', ('lm-harbour', 'lm-ledger')
    assert command('prune', source, '--layerwise', '--tasks', *tasks, '--tokens', '96', '--data',
                   texts, *flags.split(), '--out', out) == 0
    printed = capsys.readouterr().out
    assert 'layer 1 of 2\nlayer 2 of 2\n' in printed and 'parameters' in printed
    cfg, params, encoded = model_and_tasks(source, tasks, texts)
    batches = [{k: v[:3] for k, v in task.train.items()} | {'group': task.name}
               for task in encoded]  # 96 tokens are 3 rows of 32
    found = prune.plan_layerwise(flags.split()[1], params, cfg, batches, replace='none', **{
        'gates': 'slice', 'group': None} | options, protect='none')
    assert_same_plan(prune.Plan.load(out / 'plan.npz'), found.plan)
    small_cfg, small = moe_jax.load(out)
    assert small_cfg == found.cfg
    jax.tree.map(np.testing.assert_array_equal, small, found.params)
    assert native.load_lineage(out)['layerwise']['tasks'] == list(tasks)


def test_the_flags_and_choices_are_those_of_plan(command, capsys):
    hints = typing.get_type_hints(prune.plan)
    keywords = {p.name: hints[p.name] for p in inspect.signature(prune.plan).parameters.values()
                if p.kind is p.KEYWORD_ONLY}
    ours = typing.get_type_hints(Amounts) | typing.get_type_hints(Common)
    assert ours == {name: hint for name, hint in keywords.items() if name != 'group'}
    assert command('prune', '--help') == 0
    said = capsys.readouterr().out
    assert not [name for name in keywords if f'--{name.replace("_", "-")} ' not in said
                and f'--{name}, ' not in said]
    assert 'exactly one of --experts' in said and 'super never drops' in said


def test_the_command_is_in_the_list_of_all(command, capsys):
    assert command('--help') == 0
    assert 'Plan a smaller model' in capsys.readouterr().out
