"""`moe-jax train`: what it refuses, what it forecasts, and whole runs on a few sentences."""

import json

import jax
import numpy as np
import pytest

import moe_jax
import train
from moe_jax import commands_train

CONFIG = """
from moe_jax import Config
from train import Run, TrainOptions

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

def large():
    return config().replace(mesh={'expert': 64, 'data': 2},
                            options=TrainOptions(steps=6, warmup=1, batch=128, length=16))
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)
    return path


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
    run = train.run.load(config)
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
    command, config, texts, tmp_path, capsys
):
    out = tmp_path / 'run'
    assert command('train', config, '--out', out, '--data', texts) == 0
    said = capsys.readouterr().out.splitlines()
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


def test_a_model_of_transformers_keeps_what_exporting_needs(
    command, config, source, texts, tmp_path
):
    config.write_text(CONFIG.replace('START', str(source)))
    out = tmp_path / 'tuned'
    assert command('train', config, '--variant', 'tuned', '--out', out, '--data', texts) == 0
    cfg, params = moe_jax.load(out / 'model')
    moe_jax.export_hf(tmp_path / 'back', cfg, params, like=out / 'model')
    assert (tmp_path / 'back/tokenizer.json').is_file()
