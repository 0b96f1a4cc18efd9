"""The loop: same run, same bytes, whatever happened in between; and every way to stop."""

import dataclasses
import json
import shutil
import signal
import threading

import jax
import numpy as np
import pytest

import moe_jax.base.files
import moe_jax.storage.native
from tests.train.train_tiny import CFG, OPTIONS, batch, equal, params, stream, stream_until
from train import Diverged, Interrupted, fit
from train.loop import store


def files(out):
    return (out / 'metrics.jsonl').read_bytes(), moe_jax.storage.native.load(out / 'model')


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp('unbroken') / 'run'
    return out, *fit(CFG, params(), stream, OPTIONS, out=out)


def test_a_folder_changes_nothing_and_holds_the_model(unbroken):
    out, trained, history = unbroken
    alone, history_alone = fit(CFG, params(), stream, OPTIONS)
    assert equal(trained, alone) and history == history_alone
    assert [line['step'] for line in history] == [2, 4, 6, 7]
    lines = [json.loads(line) for line in (out / 'metrics.jsonl').read_text().splitlines()]
    assert lines == history
    cfg, saved = moe_jax.storage.native.load(out / 'model')
    assert cfg == CFG and equal(saved, trained)


def test_a_finished_run_returns_at_once(unbroken):
    out, trained, history = unbroken
    before = files(out)

    def none(start):
        raise AssertionError('a finished run must not read data')
    again, history_again = fit(CFG, params(), none, OPTIONS, out=out)
    assert equal(again, trained) and history_again == history
    assert files(out)[0] == before[0]


@pytest.mark.parametrize('step', [1, 3, 4, 6])
def test_interrupted_and_resumed_equals_unbroken(unbroken, tmp_path, step):
    reference, trained, history = unbroken
    stopped = stream_until(step - 1, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match=f'SIGTERM after step {step} of 7') as caught:
        fit(CFG, params(), stopped, OPTIONS, out=tmp_path / 'run')
    assert caught.value.code == 75 and caught.value.step == step
    resumed, history_resumed = fit(CFG, params(), stream, OPTIONS, out=tmp_path / 'run')
    assert equal(resumed, trained) and history_resumed == history
    assert files(tmp_path / 'run')[0] == files(reference)[0]


def test_a_crash_between_checkpoints_is_replayed(unbroken, tmp_path):
    def crash():
        raise RuntimeError('power cut')
    with pytest.raises(RuntimeError, match='power cut'):
        fit(CFG, params(), stream_until(5, crash), OPTIONS, out=tmp_path / 'run')
    with open(tmp_path / 'run/metrics.jsonl', 'a') as file:
        file.write('{"step": 5, "lo')
    resumed, history = fit(CFG, params(), stream, OPTIONS, out=tmp_path / 'run')
    assert equal(resumed, unbroken[1]) and history == unbroken[2]
    assert files(tmp_path / 'run')[0] == files(unbroken[0])[0]


def test_accumulation_and_freezing_resume_too(tmp_path):
    options = dataclasses.replace(OPTIONS, accumulate=2, trainable=r'moe/', log_every=1)
    whole, history = fit(CFG, params(), stream, options)
    stopped = stream_until(9, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match='after step 5'):
        fit(CFG, params(), stopped, options, out=tmp_path / 'run')
    resumed, history_resumed = fit(CFG, params(), stream, options, out=tmp_path / 'run')
    assert equal(resumed, whole) and history == history_resumed
    assert equal(whole['layer_1'], params()['layer_1'])


def test_only_the_last_checkpoints_stay(unbroken):
    assert [path.name for path in (unbroken[0] / 'checkpoints').iterdir()] == ['7']


def test_another_run_is_not_continued(unbroken):
    out = unbroken[0]
    with pytest.raises(ValueError, match=r'options.seed was 0 and is now 1'):
        fit(CFG, params(), stream, dataclasses.replace(OPTIONS, seed=1), out=out)
    with pytest.raises(ValueError, match=r'config.balance was 0\.01 and is now 0\.5'):
        fit(CFG.replace(balance=0.5), params(), stream, OPTIONS, out=out)
    with pytest.raises(ValueError, match='the starting weights differ'):
        fit(CFG, params(seed=1), stream, OPTIONS, out=out)


def test_other_data_on_resume_is_noticed(tmp_path):
    stopped = stream_until(3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        fit(CFG, params(), stopped, OPTIONS, out=tmp_path / 'run')
    with pytest.raises(ValueError, match='not the batch that step 4 trained on'):
        fit(CFG, params(), lambda start: stream(start + 1), OPTIONS, out=tmp_path / 'run')


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / 'thesis.tex').write_text('years of work')
    with pytest.raises(FileExistsError, match='not the folder of a run'):
        fit(CFG, params(), stream, OPTIONS, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_two_runs_do_not_share_a_folder(tmp_path):
    busy = pytest.raises(RuntimeError, match='another process is training in this folder')
    with store.opened(tmp_path / 'run', CFG, params(), OPTIONS), busy:
        fit(CFG, params(), stream, OPTIONS, out=tmp_path / 'run')


def poisoned(step):
    """Weights in one batch whose sum no float holds: the loss is NaN there."""
    def batches(start):
        for index, rows in enumerate(stream(start), start):
            if index == step:
                rows['weights'][0, 1] = np.finfo(np.float32).max
            yield rows
    return batches


def test_divergence_stops_with_norms_and_keeps_the_last_good_state(tmp_path):
    message = r'step 6: loss nan.*Norms of params: embed \d.*gradient: .*checkpoint is step 3'
    with pytest.raises(Diverged, match=message) as caught:
        fit(CFG, params(), poisoned(5), OPTIONS, out=tmp_path / 'run')
    assert caught.value.step == 6 and isinstance(caught.value, FloatingPointError)
    assert set(caught.value.norms) == {'embed', 'layer_0', 'layer_1', 'norm_final'}
    assert all(np.isfinite(norm) for norm in caught.value.norms.values())
    assert not (tmp_path / 'run/model').exists()
    resumed, _ = fit(CFG, params(), stream, OPTIONS, out=tmp_path / 'run')
    assert equal(resumed, fit(CFG, params(), stream, OPTIONS)[0])


def test_divergence_at_the_last_step_and_at_a_checkpoint_is_not_saved(tmp_path):
    with pytest.raises(Diverged, match='checkpoint is step 6'):
        fit(CFG, params(), poisoned(6), OPTIONS, out=tmp_path / 'last')
    with pytest.raises(Diverged, match='checkpoint is step 0'):
        fit(CFG, params(), poisoned(2), OPTIONS, out=tmp_path / 'checkpoint')


def test_a_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    stopped = stream_until(4, lambda: monkeypatch.setattr(
        shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000)
    ))
    with pytest.raises(moe_jax.base.files.DiskFull) as caught:
        fit(CFG, params(), stopped, OPTIONS, out=tmp_path / 'run')
    assert 'the checkpoint of step 6 (that of step 3 is intact) needs 1,' in str(caught.value)
    assert '1,000 free' in str(caught.value)
    monkeypatch.undo()
    resumed, _ = fit(CFG, params(), stream, OPTIONS, out=tmp_path / 'run')
    assert equal(resumed, fit(CFG, params(), stream, OPTIONS)[0])


def test_a_disk_that_fills_up_while_writing_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    def full(self, step, args):
        (tmp_path / 'run/checkpoints/3.orbax-checkpoint-tmp').mkdir()
        raise ValueError('RESOURCE_EXHAUSTED: Failed to write: No space left on device')
    monkeypatch.setattr(store.ocp.CheckpointManager, 'save', full)
    with pytest.raises(moe_jax.base.files.DiskFull, match='ran full while writing'):
        fit(CFG, params(), stream, OPTIONS, out=tmp_path / 'run')
    assert list((tmp_path / 'run/checkpoints').iterdir()) == []


def test_signal_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        stopped = stream_until(2, lambda number=number: signal.raise_signal(number))
        with pytest.raises(Interrupted, match=f'{number.name} after step 3.*nothing was saved'):
            fit(CFG, params(), stopped, OPTIONS)
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize('handler', [signal.default_int_handler, signal.SIG_IGN])
def test_a_second_interrupt_is_immediate(handler):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    before = signal.signal(signal.SIGINT, handler)  # a background job starts with it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(CFG, params(), stream_until(2, twice), OPTIONS)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_works_outside_the_main_thread_and_leaves_no_thread(tmp_path):
    results, before = [], set(threading.enumerate())
    worker = threading.Thread(
        target=lambda: results.append(fit(CFG, params(), stream, OPTIONS, out=tmp_path / 'run'))
    )
    worker.start()
    worker.join()
    assert equal(results[0][0], fit(CFG, params(), stream, OPTIONS)[0])
    left = {thread for thread in threading.enumerate() if 'asyncio' not in thread.name} - before
    assert left == set()


def test_progress_and_evaluation_are_called_when_they_should_be():
    seen, evaluated = [], []

    def evaluate(tree):
        evaluated.append(jax.tree.map(np.array, tree))
        return {'score': len(evaluated)}
    options = dataclasses.replace(OPTIONS, evaluate_every=3, log_every=5)
    trained, history = fit(CFG, params(), stream, options, evaluate=evaluate,
                           progress=lambda *call: seen.append(call))
    assert [(step, steps) for step, steps, _ in seen] == [(i, 7) for i in range(1, 8)]
    assert [(h['step'], h.get('eval_score')) for h in history] == [
        (3, 1.0), (5, None), (6, 2.0), (7, 3.0)
    ]
    assert equal(evaluated[-1], trained)


def test_data_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r'batches ended at step 2 of 7'):
        fit(CFG, params(), lambda start: iter([batch(0), batch(1)]), OPTIONS)
    with pytest.raises(ValueError, match=r'step 0: batch has tokens \(3, 12\).*\[4, 12\]'):
        fit(CFG, params(), lambda start: iter([batch(0, rows=3)]), OPTIONS)


def test_a_generator_of_batches_is_closed():
    closed = []

    def batches(start):
        try:
            yield from stream(start)
        finally:
            closed.append(start)
    fit(CFG, params(), batches, OPTIONS)
    assert closed == [0]


def test_dtypes_come_back():
    start = jax.tree.map(lambda leaf: leaf.astype('bfloat16'), params())
    options = dataclasses.replace(OPTIONS, trainable='moe/')
    trained, _ = fit(CFG.replace(dtype='bfloat16'), start, stream, options)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(trained)} == {'bfloat16'}
    assert equal(trained['embed'], start['embed'])
    assert not equal(trained['layer_0']['moe'], start['layer_0']['moe'])
