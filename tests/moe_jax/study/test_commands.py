"""observe, prune and eval on a model that a study pretrained."""

import numpy as np
import pytest

import moe_jax
import prune
from moe_jax.calibration.stats import Stats
from moe_jax.data import tasks, tokenizer
from moe_jax.evals import perplexity
from moe_jax.evals.tasks import encode_task

TEXT_TASK = 'lm-harbour'


@pytest.fixture
def model(unbroken):
    return unbroken / 'models' / '4-experts-seed-0'


@pytest.fixture
def stats(command, model, texts, tmp_path):
    path = tmp_path / 'stats.npz'
    assert command('observe', model, '--tasks', 'quiz', TEXT_TASK, '--out', path, '--tokens', '512',
                   '--data', texts) == 0
    return path


def test_observe_counts_every_token_of_the_rows_it_read(model, stats, texts):
    cfg, _ = moe_jax.load(model)
    encoder = tokenizer.load(model / 'tokenizer.json')
    found = Stats.load(stats)
    assert set(found.groups) == {'quiz', TEXT_TASK}
    for name in found.groups:
        rows = encode_task(tasks.load(name, data_dir=texts), encoder, cfg.positions).train
        used = (rows['segments'][: 512 // cfg.positions] > 0).sum()
        assert found.layer(0, name)['tokens'] == used == found.layer(0, name)['count'].sum()


def test_observe_collects_what_the_named_methods_need(command, model, texts, tmp_path):
    out = tmp_path / 'more.npz'
    assert command('observe', model, '--tasks', 'quiz', '--data', texts, '--out', out,
                   '--methods', 'naee', 'hc_smoe', '--reservoir', '32') == 0
    found = Stats.load(out)
    layer = found.layer(0)
    assert layer['sample_gram'].shape == (32, 4, 4) and 'dense_output_sum' in layer
    assert len(found.tokenizer) == 16 and found.reservoir == 32
    assert command('prune', model, '--method', 'naee', '--experts', '2', '--stats', out,
                   '--out', tmp_path / 'small') == 0


def test_prune_saves_what_the_library_makes(command, model, stats, tmp_path, capsys):
    out = tmp_path / 'small'
    assert command('prune', model, '--method', 'uncurl', '--experts', '2', '--stats', stats,
                   '--group', 'quiz', '--options', 'router_init=reference', 'seed=3',
                   '--out', out) == 0
    cfg, params = moe_jax.load(model)
    plan = prune.plan('uncurl', Stats.load(stats), params, cfg, experts=2, group='quiz',
                      router_init='reference', seed=3)
    wanted, wanted_cfg = prune.apply(params, cfg, plan)
    small_cfg, small = moe_jax.load(out)
    assert small_cfg == wanted_cfg and small_cfg.experts == (2,)
    np.testing.assert_array_equal(small['layer_0']['moe']['experts']['up'],
                                  wanted['layer_0']['moe']['experts']['up'])
    assert (out / 'plan.npz').exists() and (out / 'tokenizer.json').exists()
    assert '4 -> 2 experts' in capsys.readouterr().out


def test_eval_prints_the_perplexity_of_the_text(command, model, texts, capsys):
    assert command('eval', model, '--tasks', TEXT_TASK, 'quiz', '--data', texts) == 0
    printed = capsys.readouterr().out
    cfg, params = moe_jax.load(model)
    encoder = tokenizer.load(model / 'tokenizer.json')
    task = encode_task(tasks.load(TEXT_TASK, data_dir=texts), encoder, cfg.positions)
    mean = perplexity.evaluate(cfg, params, task.validation).mean
    assert f'{mean:.4f}' in printed and 'quiz' in printed and 'by document' in printed


@pytest.mark.parametrize(('arguments', 'words'), [
    (('--method', 'uncrul', '--experts', '2'), ('uncrul', "'uncurl'")),
    (('--method', 'uncurl', '--experts', '9'), ('9', '4')),
    (('--method', 'uncurl', '--experts', '2', '--options', 'centre=none'), ("'center'",)),
    (('--method', 'uncurl', '--experts', '2', '--options', 'seed'), ('name=value',)),
    (('--method', 'frequency', '--experts', '2'), ('count', 'observe')),
])
def test_prune_refuses(command, model, tmp_path, capsys, arguments, words):
    out = tmp_path / 'small'
    assert command('prune', model, *arguments, '--out', out) == 1
    said = capsys.readouterr().err
    assert all(word in said for word in words) and 'Traceback' not in said
    assert not out.exists()


def test_nothing_is_overwritten(command, model, tmp_path, capsys):
    out = tmp_path / 'taken'
    out.mkdir()
    assert command('prune', model, '--method', 'random', '--experts', '2', '--out', out) == 1
    assert 'exists already' in capsys.readouterr().err and not list(out.iterdir())


