"""`moe-jax curve`: what prune.safe_sparsity finds, kept point by point, and drawn."""

import json
import re

import pytest


@pytest.fixture
def curve(command, source, texts):
    return lambda *arguments: command('curve', source, '--tasks', 'lm-harbour', '--data', texts,
                                      '--tokens', 128, *arguments)


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


def test_no_more_than_half_of_a_small_side_is_compared_on(curve, stats, tmp_path, capsys):
    out = tmp_path / 'curve'
    assert curve('--methods', 'random', '--experts', 4, '--out', out, '--tokens', 10**6) == 0
    said = capsys.readouterr().out
    there, last, tokens = map(int, re.search(
        r'has (\d+) rows of 32 tokens; compares on the last (\d+)\. .*--tokens (\d+) ', said,
    ).groups())
    assert last == there // 2 and tokens == 32 * (there - last)


@pytest.mark.parametrize('content', ['', '{"id": "a", "kind": "score"}\n'])
def test_a_folder_of_something_else_is_left_alone(curve, tmp_path, capsys, content):
    (tmp_path / 'records.jsonl').write_text(content)
    assert curve('--methods', 'random', '--out', tmp_path) == 1
    assert 'holds no curve' in capsys.readouterr().err
    assert (tmp_path / 'records.jsonl').read_text() == content
