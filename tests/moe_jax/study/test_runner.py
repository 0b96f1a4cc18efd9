"""A study goes on where it was, whoever stopped it and however, and ends with the same table."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import prune
from moe_jax.study import records, report, runner, workshop
from moe_jax.study.expert_count import compute
from moe_jax.study.expert_count.cells import cells as cells_of
from moe_jax.study.expert_count.spec import Method
from tests.moe_jax.study import study_tiny

STUDY = study_tiny.config()
CONFIG = Path(study_tiny.__file__)
PROGRAM = 'from moe_jax.cli import main; main()'
CELLS = 15


def finished(folder) -> list[dict]:
    """The raw records of cells, in the order they were written, repeats included."""
    lines = (folder / records.FILE).read_text().splitlines()
    return [r for r in map(json.loads, lines) if r['kind'] != 'study']


def outcome(folder) -> dict:
    """What the cells found, without what a clock measured."""
    clocked = ('latency', 'parallel')
    return {r['id']: r['outputs'] for r in finished(folder) if r['kind'] not in clocked}


@pytest.fixture
def counted(monkeypatch):
    """Cells that compute nothing; the list of their titles, in the order they ran."""
    ran = []
    for kind in compute.COMPUTE:
        def fake(shop, cell):
            ran.append(cell.title)
            if cell.kind == 'pretrain':
                shop.model_folder(cell).mkdir(parents=True)
            return {'of': cell.title}
        monkeypatch.setitem(compute.COMPUTE, kind, fake)
    return ran


# A whole study, really stopped.


def launch(folder, texts):
    command = [sys.executable, '-c', PROGRAM, 'study', CONFIG, '--out', folder, '--data', texts]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True, cwd=CONFIG.parents[3],
                            env=os.environ | {'JAX_PLATFORMS': 'cpu'})


def wait(process, text, lines):
    """Read stderr until a line holds `text`."""
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return
    pytest.fail(f'ended before {text!r}: {"".join(lines)}')


def stop(folder, texts, after, delay, number):
    """Start the study, send a signal some time after a line; the process and its stderr."""
    process, lines = launch(folder, texts), []
    wait(process, after, lines)
    time.sleep(delay)
    process.send_signal(number)
    _, rest = process.communicate(timeout=120)
    return process, ''.join(lines) + rest


@pytest.mark.full
def test_stopped_again_and_again_it_ends_with_the_same_table(unbroken, texts, tmp_path, command,
                                                             capsys):
    rng, folder = random.Random(1), tmp_path / 'study'
    process, _ = stop(folder, texts, 'fetching', rng.uniform(0, 2), signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert (folder / records.LOCK).read_text() == str(process.pid)  # a stale lock
    process, text = stop(folder, texts, '/15]', rng.uniform(0, 0.2), signal.SIGTERM)
    assert process.returncode == 75 and 'same command goes on' in text, text
    stop(folder, texts, '/15]', rng.uniform(0, 0.5), signal.SIGKILL)
    process, text = stop(folder, texts, '/15]', rng.uniform(0, 0.2), signal.SIGINT)
    assert process.returncode in (75, 130) and 'Traceback' not in text, text

    process, lines = launch(folder, texts), []
    wait(process, '/15]', lines)
    process.send_signal(signal.SIGSTOP)  # so that it does not finish while we look
    assert command('study', CONFIG, '--out', folder, '--data', texts) == 1  # beside the other
    assert f'process {process.pid} is running this study' in capsys.readouterr().err
    process.kill()
    process.communicate()

    before = len(finished(folder))
    assert command('study', CONFIG, '--out', folder, '--data', texts) == 0
    assert f'[{before + 1}/15]' in capsys.readouterr().err
    found = finished(folder)
    assert len(found) == len({r['id'] for r in found}) == CELLS  # nothing was computed twice
    assert outcome(folder) == outcome(unbroken)
    assert (folder / 'table.md').read_bytes() == (unbroken / 'table.md').read_bytes()


def test_a_finished_study_computes_nothing(unbroken, texts, tmp_path, counted):
    content = (unbroken / records.FILE).read_bytes()
    runner.run(STUDY, unbroken, data_dir=texts)
    assert not counted and (unbroken / records.FILE).read_bytes() == content


def interrupting(monkeypatch, *numbers):
    """Send signals from the third step that a model trains."""
    advance, steps = runner.Display.advance, []

    def noisy(self, *arguments):
        advance(self, *arguments)
        steps.append(arguments)
        if len(steps) == 3:
            for number in numbers:
                signal.raise_signal(number)
    monkeypatch.setattr(runner.Display, 'advance', noisy)


@pytest.mark.parametrize(('numbers', 'code'), [
    ((signal.SIGINT,), 75), ((signal.SIGTERM,), 75), ((signal.SIGINT, signal.SIGINT), 130),
])
def test_a_signal_while_a_model_trains(texts, tmp_path, monkeypatch, command, capsys, numbers,
                                       code):
    interrupting(monkeypatch, *numbers)
    folder, handlers = tmp_path / 'study', [signal.getsignal(n) for n in numbers]
    assert command('study', CONFIG, '--out', folder, '--data', texts) == code
    assert '0 of 15 cells are finished and kept' in capsys.readouterr().err
    assert [signal.getsignal(n) for n in numbers] == handlers
    saved = {int(path.name) for path in folder.glob('cells/*/checkpoints/*')}
    assert bool(saved) == (code == 75)  # the first is graceful, the second is not
    if saved:
        monkeypatch.undo()
        steps = []
        monkeypatch.setattr(runner.Display, 'advance',
                            lambda self, title, work, found, metrics: steps.append((found, work)))
        monkeypatch.setitem(compute.COMPUTE, 'usage', lambda shop, cell: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runner.run(STUDY, folder, data_dir=texts)
        per_step = 4 * 32  # rows times tokens
        assert steps[0] == (per_step * max(saved), per_step)  # it resumed, and did not start over


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_between_two_trainings_stops_at_once(texts, tmp_path, monkeypatch, command,
                                                      capsys, counted, number, code):
    monkeypatch.setitem(compute.COMPUTE, 'usage', lambda *_: signal.raise_signal(number))
    assert command('study', CONFIG, '--out', tmp_path / 'study', '--data', texts) == code
    error = capsys.readouterr().err
    assert '2 of 15 cells are finished and kept' in error and 'Traceback' not in error
    assert [r['kind'] for r in finished(tmp_path / 'study')] == ['pretrain', 'pretrain']


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_that_python_drops_is_not_lost(texts, tmp_path, monkeypatch, command, counted,
                                                number, code):
    def in_a_collection(*_):
        with contextlib.suppress(KeyboardInterrupt, SystemExit):  # as a gc callback does
            signal.raise_signal(number)
        return {}

    monkeypatch.setitem(compute.COMPUTE, 'latency', in_a_collection)
    assert command('study', CONFIG, '--out', tmp_path / 'study', '--data', texts) == code
    assert [r['kind'] for r in finished(tmp_path / 'study')][-1] == 'latency'
    assert len(finished(tmp_path / 'study')) == 5


# What is computed, with cells that cost nothing.


def test_grown_seeds_reuse_what_is_there(texts, tmp_path, counted):
    runner.run(STUDY, tmp_path, data_dir=texts)
    assert len(counted) == CELLS
    counted.clear()
    runner.run(STUDY.replace(seeds=(0, 1)), tmp_path, data_dir=texts)
    assert len(counted) == CELLS - 3 and all('seed 1' in title for title in counted)
    counted.clear()
    runner.run(STUDY.replace(seeds=(1, 0)), tmp_path, data_dir=texts)
    assert counted == ['embedding 4->2 on lm-harbour (seed 1)']  # that of the first seed only


def test_a_changed_input_redoes_its_cells_and_a_new_label_none(texts, tmp_path, counted):
    runner.run(STUDY, tmp_path, data_dir=texts)
    counted.clear()
    labeled = STUDY.replace(rivals=(Method(label='often', name='frequency'),))
    runner.run(labeled, tmp_path, data_dir=texts)
    assert not counted
    kept = records.read(tmp_path).values()
    assert {r['method'] for r in kept if r['kind'] == 'score'} == {'none', 'uncurl', 'often'}
    runner.run(STUDY.replace(rivals=(Method(label='random', name='random'),)), tmp_path,
               data_dir=texts)
    assert counted == ['random 4->2 on lm-harbour (seed 0)', 'random 4->2 on quiz (seed 0)']


def test_a_model_that_is_gone_is_made_again_if_a_cell_needs_it(texts, tmp_path, counted):
    runner.run(STUDY, tmp_path, data_dir=texts)
    counted.clear()
    for model in tmp_path.glob('cells/*/model'):
        model.rmdir()
    runner.run(STUDY, tmp_path, data_dir=texts)
    assert not counted
    lines = (tmp_path / records.FILE).read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"method":"uncurl"' not in line]
    (tmp_path / records.FILE).write_text(''.join(kept))
    runner.run(STUDY, tmp_path, data_dir=texts)
    assert sorted(counted) == ['pretrain 4 (seed 0)', 'uncurl 4->2 on lm-harbour (seed 0)',
                               'uncurl 4->2 on quiz (seed 0)']


def test_an_error_names_its_cell_and_keeps_the_others(texts, tmp_path, counted, monkeypatch,
                                                      command, capsys):
    monkeypatch.setitem(compute.COMPUTE, 'latency', lambda *_: {'milliseconds': float('nan')})
    assert command('study', CONFIG, '--out', tmp_path / 's', '--data', texts) == 1
    error = capsys.readouterr().err
    assert 'not finite' in error and 'in the cell latency (seed 0)' in error
    assert len(finished(tmp_path / 's')) == 4


def test_the_workshop_holds_one_model_and_every_statistic_once(unbroken, stuff, monkeypatch):
    pretrained = {(c.about['experts'], 0): c for c in cells_of(STUDY, stuff)
                  if c.kind == 'pretrain'}
    shop = compute.Workshop(STUDY, stuff, unbroken, pretrained, lambda *_: None)
    loads, load = [], workshop.native.load
    monkeypatch.setattr(workshop.native, 'load', lambda path: loads.append(path) or load(path))
    assert shop.model(4, 0)[1] is shop.model(4, 0)[1] and len(loads) == 1
    assert shop.stats(4, 0, 'quiz') is shop.stats(4, 0, 'quiz')
    shop.model(2, 0)
    assert len(shop.held) == 1 and len(loads) == 2
    assert shop.stats(4, 0, 'quiz') and len(loads) == 2  # statistics outlive their model


def test_the_workshop_observes_what_any_method_needs(unbroken, stuff):
    """Every method by name, but the one that needs a second checkpoint."""
    names = [row.name for row in prune.methods() if row.name not in ('uncurl', 'router_change')]
    study = STUDY.replace(rivals=tuple(Method(label=name, name=name) for name in names))
    cells = cells_of(STUDY, stuff)
    pretrained = {(c.about['experts'], 0): c for c in cells if c.kind == 'pretrain'}
    shop = compute.Workshop(study, stuff, unbroken, pretrained, lambda *_: None)
    cell = next(c for c in cells if c.kind == 'score' and c.about['method'] == 'frequency')
    for method in study.methods():
        plan = compute.plan(shop, cell, method)
        assert plan.method == method.name
        assert sum(layer.after for layer in plan.layers.values()) == cell.about['keep'], method


def test_a_study_runs_outside_the_main_thread(texts, tmp_path, counted):
    thread = threading.Thread(target=runner.run, args=(STUDY, tmp_path),
                              kwargs={'data_dir': texts})
    thread.start()
    thread.join()
    assert len(counted) == CELLS


# Folders.


def test_a_folder_with_another_study_or_other_files_is_left_alone(texts, tmp_path, counted):
    runner.run(STUDY, tmp_path / 'study', data_dir=texts)
    (tmp_path / 'files').mkdir()
    (tmp_path / 'files/notes.txt').write_text('mine')
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'records').mkdir()
    (tmp_path / 'records' / records.FILE).write_text('{"id": "a"}\n')
    counted.clear()
    for folder, message in (('study', "holds the study 'tiny', not 'other'.*--out"),
                            ('files', 'not empty and holds no study.*--out'),
                            ('file', 'is a file; give a folder'),
                            ('records', "holds the study None, not 'other'")):
        before = sorted((p, p.stat().st_size) for p in tmp_path.rglob('*')
                        if p.name != records.LOCK)
        with pytest.raises(runner.OtherStudy, match=message):
            runner.run(STUDY.replace(name='other'), tmp_path / folder, data_dir=texts)
        assert before == sorted((p, p.stat().st_size) for p in tmp_path.rglob('*')
                                if p.name != records.LOCK)
    assert not counted


def test_a_run_that_failed_before_its_first_record_claims_nothing(texts, tmp_path, counted,
                                                                  monkeypatch):
    def broken(*_):
        raise RuntimeError('no text')

    with monkeypatch.context() as patch, contextlib.suppress(RuntimeError):
        patch.setattr(runner.material, 'prepare', broken)
        runner.run(STUDY, tmp_path, data_dir=texts)
    assert [path.name for path in tmp_path.iterdir()] == [records.LOCK]
    runner.run(STUDY.replace(name='other'), tmp_path, data_dir=texts)
    assert len(counted) == CELLS


def test_half_a_study_reports(unbroken, tmp_path):
    lines = (unbroken / records.FILE).read_text().splitlines(keepends=True)
    (tmp_path / records.FILE).write_text(''.join(lines[:9]) + lines[9][:50])
    report.write(tmp_path / records.FILE, tmp_path)
    assert '–' in (tmp_path / 'table.md').read_text()
