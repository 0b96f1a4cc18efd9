"""`moe-jax curve`: what prune.safe_sparsity finds, kept point by point, and drawn."""

import json

import prune_case
import pytest

import moe_jax


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    return prune_case.write_source(tmp_path_factory.mktemp('source'))


@pytest.fixture(scope='module')
def stats(source, tmp_path_factory):
    return prune_case.write_stats(tmp_path_factory.mktemp('stats') / 'stats.npz',
                                  *moe_jax.load(source))


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
    return prune_case.write_texts(tmp_path_factory.mktemp('texts'))


@pytest.fixture
def curve(monkeypatch, tmp_path_factory, source, texts):
    monkeypatch.setenv('MOE_JAX_CACHE', str(tmp_path_factory.getbasetemp() / 'cache'))
    return lambda *arguments: prune_case.run(
        monkeypatch, 'curve', source, '--tasks', 'lm-harbour', '--data', texts, '--tokens', 128,
        *arguments)


def test_a_curve_is_recorded_drawn_and_goes_on(curve, stats, tmp_path, capsys):
    out = tmp_path / 'curve'
    wanted = ('--methods', 'reap', 'random', '--experts', 4, 3, '--stats', stats, '--out', out)
    assert curve(*wanted) == 0
    shown = capsys.readouterr().out
    points = [json.loads(line) for line in (out / 'records.jsonl').read_text().splitlines()]
    assert [(p['method'], p['kept']) for p in points] == [
        ('reap', 4), ('reap', 3), ('random', 4), ('random', 3)]
    assert '[4/4] random, 3 experts' in shown and 'nats lost [95%]' in shown
    assert (out / 'curve.png').read_bytes().startswith(b'\x89PNG')
    assert all(p['groups'].keys() == {'lm-harbour'} for p in points)

    lines = (out / 'records.jsonl').read_text().splitlines(keepends=True)
    (out / 'records.jsonl').write_text(''.join(lines[:3]))  # as if stopped before the last
    assert curve(*wanted) == 0
    shown = capsys.readouterr().out
    assert '3 points are there already' in shown and '[1/4]' not in shown and '[4/4]' in shown
    assert (out / 'records.jsonl').read_text().splitlines(keepends=True) == lines


@pytest.mark.parametrize('arguments, message', [
    (('--methods', 'reep'), "no method 'reep'"),
    (('--methods', 'reap'), 'needs the statistics'),
    (('--methods', 'random', '--experts', 1), 'cannot keep 1'),
    (('--methods', 'random', '--tolerance', -1), 'tolerance=-1'),
])
def test_what_cannot_be_drawn_is_refused(curve, tmp_path, capsys, arguments, message):
    out = tmp_path / 'curve'
    assert curve('--out', out, *arguments) == 1
    assert message in capsys.readouterr().err
    assert not (out / 'records.jsonl').exists()
