"""`moe-jax train`: what it refuses, what it forecasts, and whole runs on a few sentences."""

import contextlib
import io
import json
import re
import shutil

import jax
import numpy as np
import pytest

import moe_jax
import train
from moe_jax.cli import train as commands_train
from moe_jax.storage import native
from tests.moe_jax.cli import prune_case

CONFIG = """
from moe_jax import Config
import dataclasses

from train import Distill, Run, Trainable, TrainOptions

OPTIONS = TrainOptions(steps=6, batch=4, length=16, peak_lr=1e-2, warmup=1, log_every=2,
                       checkpoint_every=3)
MODEL = Config(vocab=300, positions=32, width=16, heads=2, mlp_hidden=24, expert_hidden=24,
               experts=(4, 0))

def config():
    return Run(name='tiny', model=MODEL, options=OPTIONS, corpus_characters=2000,
               heldout_tokens=200)

def smoke():
    return config().replace(name='smoke', domains={'harbour': 1.0}, mesh={'data': 1})

def tuned():
    return Run(name='tuned', start='START', options=OPTIONS, tasks={'lm-ledger': 1.0})

def recovered():
    return Run(name='recovered', start='START', teacher='TEACHER', domains={'ledger': 2.0},
               tasks={'lm-harbour': 1.0}, recipe=Distill(experts='balance'),
               options=dataclasses.replace(OPTIONS, steps=12, log_every=1))

def adapted():
    trainable = Trainable(leaves='moe/router', rank=2, on='moe/experts/')
    return recovered().replace(recipe=Distill(logits=1.0), options=dataclasses.replace(
        OPTIONS, trainable=trainable, keep_zeros='moe/experts/', keep=2))

def hidden():
    return recovered().replace(recipe=Distill(hidden=1.0, experts=1.0))

def large():
    return config().replace(mesh={'expert': 64, 'data': 2},
                            options=TrainOptions(steps=6, warmup=1, batch=128, length=16))
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope='module')
def run(texts, tmp_path_factory):
    """The folder of a run of config(), and the lines it printed."""
    out, said = tmp_path_factory.mktemp('trained') / 'run', io.StringIO()
    config = out.with_name('config.py')
    config.write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setenv('MOE_JAX_CACHE', str(tmp_path_factory.getbasetemp() / 'cache'))
        assert prune_case.run(patch, 'train', config, '--out', out, '--data', texts) == 0
    return out, said.getvalue().splitlines()


@pytest.fixture(scope='module')
def models(run, texts, tmp_path_factory):
    """A teacher of 4 experts, and what merging makes of it."""
    folder, teacher = tmp_path_factory.mktemp('models'), run[0] / 'model'
    stats, student = folder / 'stats.npz', folder / 'student'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MOE_JAX_CACHE', str(tmp_path_factory.getbasetemp() / 'cache'))
        assert prune_case.run(patch, 'observe', teacher, '--tasks', 'lm-ledger', '--tokens', '256',
                              '--out', stats, '--data', texts) == 0
        assert prune_case.run(patch, 'prune', teacher, '--method', 'frequency_merge', '--experts',
                              '2', '--stats', stats, '--out', student) == 0
    return teacher, student


def test_help_names_the_options(command, capsys):
    assert command('train', '--help') == 0
    said = capsys.readouterr().out
    names = ('smoke', 'variant', 'mesh', 'batch', 'plan-only', 'peak', 'out', 'data')
    assert all(f'--{name}' in said for name in names)


def test_a_plan_needs_neither_devices_nor_text_and_writes_nothing(
    command, config, capsys, monkeypatch, tmp_path
):
    (tmp_path / 'empty').mkdir()
    monkeypatch.chdir(tmp_path / 'empty')
    assert command('train', config, '--variant', 'large', '--plan-only', '--peak', 'v5p') == 0
    said = capsys.readouterr().out
    assert 'expert=64, data=2 (v5p x 128): fits' in said
    words = ('memory: params', 'all-to-all', 'tokens per second', '40%')
    assert all(word in said for word in words)
    assert not list((tmp_path / 'empty').iterdir())


def test_mesh_and_batch_of_the_command_take_the_place_of_the_configs(config):
    run = train.recipes.run.load(config)
    found = commands_train.changed(run, 'data=2,model=2', 2)
    assert found.axes == {'data': 2, 'model': 2}
    assert (found.options.batch, found.options.accumulate) == (2, 2)
    assert commands_train.changed(found, None, None) == found


@pytest.mark.parametrize(('arguments', 'says'), [
    (('--mesh', 'data:2'), ('--mesh data:2', 'axis=devices')),
    (('--mesh', 'data=2,data=2'), ('each axis once',)),
    (('--mesh', 'rows=2'), ("mesh axis 'rows'", 'data, fsdp, expert, model')),
    (('--mesh', 'data=3'), ('batch=4', '3 parts')),
    (('--batch', '3'), ('--batch 3', '4 rows')),
    (('--mesh', 'expert=4'), ('needs 4 devices and there are 1', 'xla_force_host')),
    (('--variant', 'confg'), ('no function confg()', "'config'")),
    (('--smoke', '--variant', 'tuned'), ('one of the two',)),
    (('--plan-only', '--peak', 'h1000'), ("no device 'h1000'", 'h100')),
    (('--plan-only', '--peak', '1e15,2'), ('four positive numbers',)),
    (('--plan-only', '--efficiency', '40'), ('efficiency=40',)),
    (('--data', 'nowhere'), ('--data nowhere: no such folder',)),
    (('--variant', 'tuned'), ('start=START: no such folder',)),
])
def test_what_cannot_be_run_is_refused_in_one_line(command, config, capsys, monkeypatch, tmp_path,
                                                   arguments, says):
    (tmp_path / 'work').mkdir()
    monkeypatch.chdir(tmp_path / 'work')
    assert command('train', config, *arguments) == 1
    said = capsys.readouterr().err
    assert all(part in said for part in says), said
    assert 'Traceback' not in said and len(said.splitlines()) == 1
    assert not list((tmp_path / 'work').iterdir())


def test_a_run_from_text_to_a_model_that_another_run_goes_on_from(
    command, config, run, texts, tmp_path, capsys
):
    out, said = run
    lines = [json.loads(line) for line in (out / 'metrics.jsonl').read_text().splitlines()]
    losses = [lines[-1][f'eval_{domain}'] for domain in ('harbour', 'ledger')]
    assert lines[-1]['step'] == 6 and (out / 'model/tokenizer.json').is_file()
    assert f'held-out loss {np.mean(losses):.4f}' in said[-1] and f'{out / "model"}' in said[-1]
    before = jax.tree.leaves(moe_jax.load(out / 'model')[1])

    assert command('train', config, '--out', out, '--data', texts) == 0  # nothing is left to do
    assert capsys.readouterr().out.splitlines()[-1] == said[-1]
    after = jax.tree.leaves(moe_jax.load(out / 'model')[1])
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))

    config.write_text(CONFIG.replace('START', str(out / 'model')))
    tuned = tmp_path / 'tuned'
    assert command('train', config, '--variant', 'tuned', '--out', tuned, '--data', texts) == 0
    assert 'lm-ledger' in capsys.readouterr().out
    _, params = moe_jax.load(tuned / 'model')
    assert not np.array_equal(params['embed']['tokens'], moe_jax.load(out / 'model')[1]['embed'][
        'tokens'])
    assert (tuned / 'model/tokenizer.json').read_bytes() == (
        out / 'model/tokenizer.json').read_bytes()


def test_the_smoke_run_reads_the_domains_it_names(command, config, texts, tmp_path, capsys):
    assert command('train', config, '--smoke', '--out', tmp_path / 'run', '--data', texts) == 0
    said = capsys.readouterr().out
    assert 'harbour' in said and 'ledger' not in said


def test_a_domain_that_is_not_there(command, config, texts, tmp_path, capsys):
    config.write_text(CONFIG.replace("'harbour'", "'harbor'"))
    assert command('train', config, '--smoke', '--out', tmp_path / 'run', '--data', texts) == 1
    assert "no domain 'harbor'" in capsys.readouterr().err


@pytest.mark.full
def test_a_model_of_transformers_keeps_what_exporting_needs(
    command, config, source, texts, tmp_path
):
    config.write_text(CONFIG.replace('START', str(source)))
    out = tmp_path / 'tuned'
    assert command('train', config, '--variant', 'tuned', '--out', out, '--data', texts) == 0
    cfg, params = moe_jax.load(out / 'model')
    moe_jax.export_hf(tmp_path / 'back', cfg, params, like=out / 'model')
    assert (tmp_path / 'back/tokenizer.json').is_file()


def written(config, start, teacher):
    config.write_text(CONFIG.replace('START', str(start)).replace('TEACHER', str(teacher)))
    return config


@pytest.mark.full
def test_a_merged_model_learns_from_the_one_it_was_made_from(
    command, config, models, texts, tmp_path, capsys
):
    (teacher, student), out = models, tmp_path / 'run'
    arguments = ('train', written(config, student, teacher), '--variant', 'recovered', '--out', out,
                 '--data', texts)
    assert command(*arguments) == 0
    said = capsys.readouterr().out.splitlines()
    before, after = (float(re.search(r'held-out loss (\d\.\d+)', line)[1]) for line in said[-2:])
    assert after < before and "the teacher's" in said[-2]
    lines = [json.loads(line) for line in (out / 'metrics.jsonl').read_text().splitlines()]
    assert all(lines[-1][name] < lines[0][name] for name in ('loss', 'ce', 'expert'))
    first = lines[0]  # experts='balance': as much as the cross-entropy, on the first batch
    assert first['loss'] == pytest.approx(2 * first['ce'] + first['balance'] + first['zloss'],
                                          rel=1e-4)

    assert (out / 'model/plan.npz').read_bytes() == (student / 'plan.npz').read_bytes()
    found, metrics = moe_jax.load(out / 'model')[1], (out / 'metrics.jsonl').read_bytes()
    assert command(*arguments) == 0  # nothing is left to do
    assert capsys.readouterr().out.splitlines() == said
    assert (out / 'metrics.jsonl').read_bytes() == metrics
    again = moe_jax.load(out / 'model')[1]
    assert all(map(np.array_equal, *map(jax.tree.leaves, (found, again))))


@pytest.mark.full
def test_adapters_and_routers_learn_from_a_teacher_and_go_on_after_an_interruption(
    command, config, models, texts, tmp_path
):
    """Zeros inside the experts stay."""
    teacher, merged = models
    cfg, params = moe_jax.load(merged)
    experts = params['layer_0']['moe']['experts']
    experts['up'] = np.where(np.arange(experts['up'].shape[2]) % 3 == 0, 0, experts['up'])
    student, run = tmp_path / 'student', tmp_path / 'run'
    moe_jax.save(student, cfg, params)
    for name in ('plan.npz', 'tokenizer.json'):
        shutil.copyfile(merged / name, student / name)
    arguments = ('train', written(config, student, teacher), '--variant', 'adapted', '--out', run,
                 '--data', texts)
    assert command(*arguments) == 0
    trained = moe_jax.load(run / 'model')[1]
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), params, trained)
    assert changed['layer_0']['moe']['experts']['up'] and not changed['embed']['tokens']
    np.testing.assert_array_equal(trained['layer_0']['moe']['experts']['up'] == 0,
                                  experts['up'] == 0)
    lineage = native.load_lineage(run / 'model')['train']
    assert (lineage['trainable']['rank'], lineage['trainable']['leaves']) == (2, 'moe/router')
    assert 'Distill' in lineage['objective']

    shutil.rmtree(run / 'model')
    shutil.rmtree(run / 'checkpoints/6')
    assert command(*arguments) == 0
    again = moe_jax.load(run / 'model')[1]
    assert all(map(np.array_equal, *map(jax.tree.leaves, (trained, again))))


@pytest.mark.parametrize(('fields', 'says'), [
    ({'start': 'a', 'teacher': 'b'}, "teacher='b', recipe=None: give both"),
    ({'start': 'a', 'recipe': train.Distill(logits=1.0)}, 'teacher=None, recipe=Distill'),
    ({'start': 'a', 'teacher': 'b', 'recipe': {'logits': 1.0}}, r'must be a train\.Distill'),
    ({'model': True, 'teacher': 'b', 'recipe': train.Distill(logits=1.0)}, 'give start'),
])
def test_a_teacher_comes_with_a_recipe_and_a_start(fields, says):
    options = train.TrainOptions(steps=2, warmup=0, batch=2, length=8)
    with pytest.raises(ValueError, match=f'run r: .*{says}'):
        train.Run(name='r', options=options, **fields)


def copied(model, target, drop='plan.npz', **sizes):
    """A model's folder without one file, and with other numbers in its config.json."""
    shutil.copytree(model, target, ignore=shutil.ignore_patterns(drop))
    cfg = json.loads((target / 'config.json').read_text())
    (target / 'config.json').write_text(json.dumps(cfg | sizes))
    noted = json.loads((target / 'manifest.json').read_text())
    noted['folder'] = {name: digest for name, digest in noted['folder'].items()
                       if name != 'config.json'}
    (target / 'manifest.json').write_text(json.dumps(noted))
    return target


@pytest.mark.parametrize(('pair', 'says'), [
    (lambda t, s, new: (s, new), ('teacher=', 'no such folder')),
    (lambda t, s, new: (copied(s, new), t), ('no plan.npz', 'moe-jax prune')),
    (lambda t, s, new: (s, s), ('is for a model with [4, 0]', 'has [2, 0]')),
    (lambda t, s, new: (s, copied(t, new, vocab=301)), ('vocab=301',)),
    (lambda t, s, new: (s, copied(t, new, positions=8)), ('the teacher has 8 positions',)),
    (lambda t, s, new: (s, copied(t, new, width=32)), ('width 32',)),
])
def test_teachers_that_cannot_teach_are_refused_before_anything_is_read(
    command, config, models, tmp_path, capsys, pair, says
):
    path, out = written(config, *pair(*models, tmp_path / 'new')), tmp_path / 'run'
    assert command('train', path, '--variant', 'recovered', '--out', out) == 1
    said = capsys.readouterr().err
    assert all(part in said for part in (*says, 'recovered')), said
    assert 'Traceback' not in said and not out.exists()


def test_a_teacher_with_another_tokenizer(command, config, models, tmp_path, capsys):
    teacher = copied(models[0], tmp_path / 'other', 'tokenizer.json')
    (teacher / 'tokenizer.json').write_text('{}')
    assert command('train', written(config, models[1], teacher), '--variant', 'recovered') == 1
    assert 'tokenizer.json differ' in capsys.readouterr().err


def test_a_plan_of_a_run_says_what_its_teacher_takes(command, config, models, capsys):
    path = written(config, models[1], models[0])
    assert command('train', path, '--variant', 'hidden', '--plan-only') == 0
    said = ' '.join(capsys.readouterr().out.split())
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(moe_jax.load(models[0])[1]))
    assert f'The teacher adds: {size / 1e3:.3g} kB of parameters on each device' in said
    assert 'FLOPs in every step' in said and 'expert term' in said
