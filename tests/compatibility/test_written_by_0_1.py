"""Files that version 0.1 wrote (make.py) still open, and say what they said then.

Only public faces are used: moe_jax, prune, train and the command. What is written to is a copy.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import moe_jax
from moe_jax.cli import main
from tests.compatibility import opened
from tests.matrix import rows

DATA = Path(__file__).with_name('written_by_0_1')
EXPECTED = json.loads((DATA / 'expected.json').read_text())
STOPPED = 5  # the last step of the runs that were stopped
STUDIES = ('expert_count', 'recovery')
RTOL, ATOL = 1e-4, 1e-5  # of what is computed: machines and releases of XLA round differently


def agrees(key: str, found: dict) -> None:
    """Hold what was found against what was expected under this key."""
    with np.load(DATA / 'expected.npz') as file:
        arrays = {name.removeprefix(f'{key}/'): file[name] for name in file.files
                  if name.rpartition('/')[0] == key}
    same(found, EXPECTED[key] | arrays, key)


def same(found, wanted, where: str) -> None:
    """Equal, numbers with a fraction up to rounding."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for name, part in wanted.items():
            same(found[name], part, f'{where}/{name}')
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for i, part in enumerate(wanted):
            same(found[i], part, f'{where}[{i}]')
    elif isinstance(wanted, np.ndarray):
        assert found.dtype == wanted.dtype, where
        np.testing.assert_allclose(found, wanted, RTOL, ATOL, err_msg=where)
    elif isinstance(wanted, float):
        assert math.isclose(found, wanted, rel_tol=RTOL, abs_tol=ATOL), (where, found, wanted)
    else:
        assert found == wanted, where


def records_of(folder: Path) -> list[str]:
    return (folder / 'records.jsonl').read_text().splitlines()


@pytest.fixture
def copied(tmp_path):
    """copied(part, ...): a folder that holds copies of these parts of the data."""
    def copy(*parts: str) -> Path:
        for part in parts:
            shutil.copytree(DATA / part, tmp_path / part)
        return tmp_path
    return copy


@pytest.fixture
def command(monkeypatch, tmp_path_factory):
    """`moe-jax` in this process; errors come as they are."""
    monkeypatch.setenv('MOE_JAX_CACHE', str(tmp_path_factory.getbasetemp() / 'cache'))
    monkeypatch.setenv('MOE_JAX_TRACEBACK', '1')

    def run(*arguments) -> None:
        monkeypatch.setattr(sys, 'argv', ['moe-jax', *map(str, arguments)])
        main()
    return run


def test_configs():
    texts = json.loads((DATA / 'configs.json').read_text())
    found = {name: moe_jax.Config.from_json(text) for name, text in texts.items()}
    assert {name: cfg.to_json() for name, cfg in found.items()} == texts
    agrees('configs', {name: cfg.digest() for name, cfg in found.items()})


# Models.


@pytest.mark.parametrize('name', opened.MODELS)
def test_models(name):
    agrees(f'models/{name}', opened.model(DATA / 'models' / name))


def test_a_model_is_known_as_ours_and_may_be_overwritten(copied):
    folder = copied('models/base') / 'models/base'
    cfg, params = moe_jax.load(DATA / 'models/plain')
    moe_jax.save(folder, cfg, params, overwrite=True)
    agrees('models/plain', opened.model(folder))


@pytest.mark.parametrize('name', ['native', 'export'])
def test_models_from_and_for_transformers(name):
    agrees('hf', opened.model(DATA / 'hf' / name))


@pytest.mark.parametrize('like', ['native', 'export'])
def test_an_export_is_written_again_byte_for_byte(tmp_path, like):
    cfg, params = moe_jax.load(DATA / 'hf/native')
    moe_jax.export_hf(tmp_path / 'again', cfg, params, like=DATA / 'hf' / like)
    for name in ('config.json', 'model.safetensors', 'tokenizer.json'):
        assert (tmp_path / 'again' / name).read_bytes() == (DATA / 'hf/export' / name).read_bytes()


# Statistics and plans.


@pytest.mark.parametrize('name', opened.STATISTICS)
def test_statistics(name):
    agrees(f'statistics/{name}', opened.statistics(DATA / 'statistics' / f'{name}.npz'))


@pytest.mark.parametrize('name', opened.PLANS)
def test_plans_and_what_they_make(name):
    agrees(f'plans/{name}', opened.plan(DATA, name))


def test_a_plan_of_the_format_before():
    agrees('plans/drop', opened.plan(DATA, 'drop', 'drop_format_2'))


@pytest.mark.parametrize('name', opened.PLANS)
def test_statistics_give_the_same_plans_again(name):
    agrees(f'planned/{name}', opened.planned(DATA, name))


def test_a_plan_of_a_foreign_model():
    agrees('foreign', opened.foreign(DATA))


def test_the_command_reads_models_and_statistics(command, tmp_path):
    out = tmp_path / 'small'
    command('prune', DATA / 'models/base', '--method', 'frequency', '--experts', 3, '--stats',
            DATA / 'statistics/plain.npz', '--out', out)
    shutil.copytree(DATA / 'models/base', tmp_path / 'models/base')
    (tmp_path / 'plans').mkdir()
    shutil.copy(out / 'plan.npz', tmp_path / 'plans/drop.npz')
    made = opened.plan(tmp_path, 'drop')
    # The fingerprint is of all weights now, and ends with that of the routers, which was the old.
    assert made['model'].startswith('model:v2-')
    agrees('plans/drop', made | {'model': f'model:{made["model"].rpartition("-")[2]}'})


# Training.


@pytest.mark.parametrize('name', rows(opened.RUNS, quick=['pretrain']))
def test_a_stopped_run_goes_on_and_ends_as_unbroken(name, copied):
    out = copied(f'runs/{name}') / 'runs' / name
    first, found = opened.run(DATA, name, out)
    assert first == STOPPED + 1
    agrees(f'runs/{name}', found)


@pytest.mark.parametrize('name', ['pretrain', 'parts'])
def test_the_state_of_a_stopped_run(name, copied):
    agrees(f'states/{name}', opened.last_state(copied(f'runs/{name}', 'models/skip'), name))


@pytest.mark.full
def test_the_command_goes_on_with_a_stopped_run(command, copied, monkeypatch):
    root = copied('asked', 'hf', 'runs/distill')
    monkeypatch.chdir(root)
    metrics = root / 'runs/distill/metrics.jsonl'
    lines = metrics.read_text().splitlines()
    assert len(lines) == STOPPED
    # A note in a line stays where the run goes on, and goes where it starts again.
    lines[0] = json.dumps(json.loads(lines[0]) | {'note': 1})
    metrics.write_text('\n'.join(lines) + '\n')
    command('train', 'asked/distill.py', '--data', 'asked/texts', '--out', 'runs/distill')
    found = opened.trained_by_command(root / 'runs/distill')
    assert found['history'][0].pop('note') == 1
    agrees('runs/distill', found)


@pytest.mark.full
def test_what_a_teacher_said():
    agrees('teacher', opened.taught(DATA))


# Studies and curves: records are kept, and what has one is not computed again.


@pytest.mark.parametrize('name', STUDIES)
def test_a_report_is_made_of_the_records(name, command, copied):
    folder = copied(f'studies/{name}') / 'studies' / name
    (folder / 'table.md').unlink()
    command('report', folder)
    assert (folder / 'table.md').read_text() == (DATA / 'studies' / name / 'table.md').read_text()
    assert (folder / 'report.md').exists() and (folder / 'report.html').exists()


@pytest.mark.parametrize('name', STUDIES)
def test_a_finished_study_has_nothing_left_to_compute(name, command, copied, monkeypatch):
    root = copied('asked', f'studies/{name}')
    monkeypatch.chdir(root)
    command('study', f'asked/{name}.py', '--data', 'asked/texts', '--out', f'studies/{name}')
    before, after = (records_of(where / 'studies' / name) for where in (DATA, root))
    assert after[:len(before)] == before
    # A study is described anew on another machine, or with other releases of packages.
    more = [json.loads(line) for line in after[len(before):]]
    assert {record['kind'] for record in more} <= {'study'}
    described = [json.loads(line) for line in after if json.loads(line)['kind'] == 'study'][-1]
    cells = EXPECTED[f'studies/{name}']['cells']
    assert set(described['outputs']['cells']) == {identity for _, identity in cells}


@pytest.mark.full
def test_a_finished_curve_opens_and_its_points_are_computed_once_more(
        command, copied, monkeypatch, capsys):
    """What a point is made from is named by all weights now, so points of 0.1 are not reused."""
    root = copied('asked', 'hf', 'curve')
    monkeypatch.chdir(root)
    before = records_of(root / 'curve')
    call = ('curve', 'hf/native', '--tasks', 'lm-harbour', '--methods', 'expert_norm',
            'router_norm', '--experts', 2, '--data', 'asked/texts', '--out', 'curve')
    command(*call)
    after = records_of(root / 'curve')
    assert after[:2] == before and len(after) == 4
    for old, new in zip(*(map(json.loads, part) for part in (before, after[2:])), strict=True):
        same({name: value for name, value in new.items() if name != 'id'},
             {name: value for name, value in old.items() if name != 'id'}, old['method'])
    command(*call)
    assert records_of(root / 'curve') == after
    assert '4 points are there already' in capsys.readouterr().out
