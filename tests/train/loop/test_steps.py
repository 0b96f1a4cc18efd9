"""Damaged run folders: a whole step is taken or the run is refused in a line, whatever happened.

MOE_JAX_MUTATIONS=1000 makes more of the random ones than a suite can.
"""

import json
import os
import random
import re
import shutil

import jax
import numpy as np
import pytest

import moe_jax
import train
from tests.train.train_tiny import CFG, DROPLESS, OPTIONS, equal, params, stream
from train import fit, last_state
from train.loop import steps
from train.loop.options import TrainOptions

MUTATIONS = int(os.environ.get('MOE_JAX_MUTATIONS', '10'))
KEPT = TrainOptions(**{**vars(OPTIONS), 'keep': 3, 'checkpoint_every': 2})


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run's folder with three steps, and the state of each."""
    out = tmp_path_factory.mktemp('steps') / 'run'
    fit(CFG, params(), stream, KEPT, out=out)
    states, numbers = {}, steps.steps(out / 'checkpoints')
    for number in numbers:
        alone = out.with_name(f'only-{number}')
        shutil.copytree(out, alone)
        for other in set(numbers) - {number}:
            shutil.rmtree(alone / 'checkpoints' / str(other))
        states[number] = jax.device_get(last_state(alone, params(), KEPT))
        assert int(states[number].step) == number
    assert len(states) == 3
    return out, states


def flip(path, rng):
    data = bytearray(path.read_bytes())
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def cut(path, rng):
    data = path.read_bytes()
    path.write_bytes(data[:rng.randrange(len(data) + 1)])


def damage(folder, rng) -> str:
    """Do something to a run's checkpoints; what it was."""
    numbers = steps.steps(folder)
    newest = folder / str(numbers[0])
    files = sorted(path for path in newest.rglob('*') if path.is_file())
    kind = rng.choice(('flip', 'flip', 'flip', 'cut', 'delete', 'extra', 'swap'))
    path = rng.choice(files)
    if kind == 'flip':
        flip(path, rng)
    elif kind == 'cut':
        cut(path, rng)
    elif kind == 'delete':
        path.unlink()
    elif kind == 'extra':
        (path.parent / f'extra-{rng.randrange(9)}').write_bytes(rng.randbytes(50))
    else:
        other = folder / str(rng.choice(numbers[1:]))
        newest.rename(folder / 'aside')
        other.rename(newest)
        (folder / 'aside').rename(other)
    return f'{kind} {path.relative_to(folder)}'


def test_random_damage_never_gives_other_weights(run, tmp_path):
    out, states = run
    for number in range(MUTATIONS):
        rng, copy = random.Random(number), tmp_path / 'copy'
        shutil.copytree(out, copy)
        what = [damage(copy / 'checkpoints', rng) for _ in range(rng.choice((1, 1, 2)))]
        try:
            state = last_state(copy, params(), KEPT)
        except (ValueError, FileNotFoundError) as error:
            assert str(error).startswith(str(copy)) and '\n' not in str(error), (what, error)
        else:
            assert equal(state, states[int(state.step)]), what
        shutil.rmtree(copy)


def test_a_damaged_newest_step_is_set_aside_and_made_again(run, tmp_path, caplog):
    out, states = run
    copy = tmp_path / 'run'
    shutil.copytree(out, copy)
    newest = max(states)
    flip(copy / 'checkpoints' / str(newest) / 'state/_METADATA', random.Random(0))
    trained, _ = fit(CFG, params(), stream, KEPT, out=copy)
    assert 'state/_METADATA is damaged' in caplog.text
    assert equal(last_state(copy, params(), KEPT), states[newest])
    aside, = (copy / steps.DAMAGED).iterdir()
    assert aside.name.startswith(f'step-{newest}-')
    assert equal(trained, fit(CFG, params(), stream, KEPT)[0])


def test_steps_without_any_seal_are_those_of_older_versions(run, tmp_path, caplog):
    out, states = run
    copy = tmp_path / 'run'
    shutil.copytree(out, copy)
    for path in (copy / 'checkpoints').glob(f'*/{steps.SEAL}'):
        path.unlink()
    assert equal(last_state(copy, params(), KEPT), states[max(states)])
    assert 'taken without a check' in caplog.text


def test_without_a_whole_step_nothing_is_moved_and_the_error_says_why(run, tmp_path):
    out, states = run
    copy = tmp_path / 'run'
    shutil.copytree(out, copy)
    for number in states:
        flip(copy / 'checkpoints' / str(number) / 'data/metadata', random.Random(1))
    with pytest.raises(ValueError, match=r'no checkpoint is whole .*data/metadata is damaged'):
        fit(CFG, params(), stream, KEPT, out=copy)
    assert steps.steps(copy / 'checkpoints') == sorted(states, reverse=True)


def test_a_copy_without_empty_files_is_a_run(run, tmp_path):
    out, _ = run
    copy = tmp_path / 'run'
    shutil.copytree(out, copy, ignore=lambda folder, names: [
        name for name in names if os.path.isfile(path := os.path.join(folder, name))
        and not os.path.getsize(path)])
    assert not (copy / 'lock').exists()
    assert equal(fit(CFG, params(), stream, KEPT, out=copy)[0],
                 fit(CFG, params(), stream, KEPT)[0])


def test_other_params_or_options_are_named(run):
    out, _ = run
    small = CFG.replace(experts=tuple(min(n, 2) for n in CFG.experts))


    for arguments in ((moe_jax.init(small, jax.random.key(0)), KEPT),
                      (params(), TrainOptions(**{**vars(KEPT), 'trainable': 'router'}))):
        with pytest.raises(ValueError, match='of another run: ') as caught:
            last_state(out, *arguments)
        assert str(out) in str(caught.value) and len(str(caught.value)) < 700


def test_a_damaged_line_of_metrics_is_dropped_and_the_file_kept(run, tmp_path, caplog):
    out, _ = run
    copy = tmp_path / 'run'
    shutil.copytree(out, copy)
    lines = (copy / 'metrics.jsonl').read_text().splitlines()
    damaged = '\n'.join([lines[0], lines[1][:-9], *lines[2:]]) + '\n'
    (copy / 'metrics.jsonl').write_text(damaged)
    _, history = fit(CFG, params(), stream, KEPT, out=copy)
    assert history == [json.loads(line) for line in (lines[0], *lines[2:])]
    assert (copy / 'metrics.damaged.jsonl').read_text() == damaged
    assert 'line 2' in caplog.text


@pytest.mark.parametrize('change', [
    {'batch': KEPT.batch // 2, 'accumulate': 2 * KEPT.accumulate}, {'steps': KEPT.steps + 3}])
def test_what_may_change_on_a_resume(tmp_path, change):


    rng = np.random.default_rng(0)
    rows = {'tokens': rng.integers(2, CFG.vocab, (16, KEPT.length)).astype(np.int32),
            'segments': np.ones((16, KEPT.length), np.int32),
            'weights': np.ones((16, KEPT.length), np.float32)}
    options = TrainOptions(**{**vars(KEPT), 'schedule': 'constant', 'eps': 1e-4})
    changed = TrainOptions(**{**vars(options), **change})

    def stop(step, *_):
        if step == 3:
            raise KeyError('stopped')

    with pytest.raises(KeyError):
        train.finetune(DROPLESS, params(), rows, options, out=tmp_path / 'run', progress=stop)
    resumed, _ = train.finetune(DROPLESS, params(), rows, changed, out=tmp_path / 'run')
    whole, _ = train.finetune(DROPLESS, params(), rows, changed)
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(('change', 'words'), [
    ({'batch': KEPT.batch + 1}, 'the rows of a step'),
    ({'steps': KEPT.steps + 3, 'schedule': 'linear'}, "only schedule='constant'"),
])
def test_what_may_not_change_is_named(tmp_path, change, words):
    options = TrainOptions(**{**vars(KEPT), 'schedule': 'linear'})
    fit(CFG, params(), stream, options, out=tmp_path / 'run')
    with pytest.raises(ValueError, match=re.escape(words)):
        fit(CFG, params(), stream, TrainOptions(**{**vars(options), **change}),
            out=tmp_path / 'run')
