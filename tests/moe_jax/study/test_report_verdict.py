"""Verdicts and words on planted studies: wins, losses, ties, thresholds, gaps, seeds."""

import numpy as np
import pytest

from moe_jax.study.report.expert_count import tables
from moe_jax.study.report.expert_count.load import gather
from moe_jax.study.report.expert_count.threshold import Threshold, crossings, move
from moe_jax.study.report.expert_count.verdict import verdict
from moe_jax.study.report.expert_count.words import headline, words
from tests.moe_jax.study import synthetic

TASKS = ('entails', 'causes', 'lm-code')


def answer(**options):
    options = {'methods': ('uncurl',), 'tasks': TASKS, 'examples': 60} | options
    records = gather(synthetic.study(**options))
    found = verdict(records, resamples=400)
    return found, ' '.join(
        part for s in words(found, records) for part in (*s.paragraphs, *s.bullets)
    )


def made(experts, draws, factors=(2.0, 4.0)) -> Threshold:
    return Threshold(experts, factors, None, 0, 0, 0, np.array(draws, float))


def test_planted_wins():
    found, text = answer(planted=lambda z, g: 0.1)
    assert {c.status for c in found.contrasts} == {'better'}
    assert 'beats pretraining small at every size tried' in headline(found)
    assert 'threshold >= 8' in text and 'measurably worse' not in text
    for c in found.contrasts:
        assert c.estimate.value == pytest.approx(0.1, abs=0.03)


def test_planted_losses():
    found, text = answer(planted=lambda z, g: -0.3)
    assert 'Pretraining small beats shrinking' in headline(found)
    assert [t.safe for t in found.thresholds] == [None] * 3
    assert 'loses already at 2' in text and 'pretrain 4: every shrunk model is worse' in text


def test_ties_are_never_called_wins():
    found, text = answer(planted=lambda z, g: 0.0, noise=0.3, keep={8: (4,), 16: (4,)})
    assert {c.status for c in found.contrasts} == {'noise'}
    assert 'No measurable difference' in headline(found)
    assert 'cannot tell the two apart' in text and 'beats' not in text


def test_planted_threshold_is_found():
    found, _ = answer(planted=lambda z, g: 0.1 * (np.log2(12) / 2 - np.log2(z / g)))
    # Zero at factor sqrt(12) = 3.46 from every size.
    by_size = {t.experts: t for t in found.thresholds}
    assert by_size[16].safe == by_size[32].safe == 2 and by_size[8].safe == 2
    assert np.isinf(by_size[8].crossing)
    assert by_size[32].crossing == pytest.approx(12**0.5, rel=0.1)
    assert by_size[32].low < 12**0.5 < by_size[32].high
    assert 'not measurably worse up to a factor of 2' in headline(found)
    assert {(m.first, m.last): m.status for m in found.moves} == {
        (8, 16): 'open',
        (16, 32): 'noise',
        (8, 32): 'open',
    }


def test_threshold_that_falls_with_size():
    zero = {16: 3.5, 32: 2.2}
    keep = {16: (8, 4), 32: (16, 8)}
    found, text = answer(planted=lambda z, g: 0.2 * np.log2(zero[z] * g / z), keep=keep)
    assert [m.status for m in found.moves] == ['falls']
    assert 'from 16 to 32 the crossing factor falls' in text


def test_crossings_by_hand():
    logs = np.array([1.0, 2.0, 3.0])
    rows = np.array([[1, 1, 1], [-1, 1, 1], [1, -1, 2], [2, 1, -1], [0, -1, -1]], float)
    expected = [np.inf, 0, 2**1.5, 2**2.5, 2]
    np.testing.assert_allclose(crossings(logs, rows), expected)


def test_moves_count_only_what_is_decided():
    assert move(made(8, [3, 3]), made(16, [2.5, 2.9])).status == 'falls'
    assert move(made(8, [3, 3]), made(16, [np.inf, 3.5])).status == 'rises'
    assert move(made(8, [np.inf] * 2, (2.0,)), made(16, [0, 0], (4.0,))).status == 'open'
    assert move(made(8, [np.inf] * 2, (4.0,)), made(16, [0, 0], (2.0,))).status == 'falls'
    assert move(made(8, [3, 3]), made(16, [2, 3.5])).status == 'noise'
    assert move(made(8, [0, 0]), made(16, [0, 0])).status == 'open'


def test_seeds_are_said():
    _, text = answer()
    assert 'One seed' in text
    three, text = answer(seeds=(0, 1, 2))
    assert '3 seeds' in text and 'One seed' not in text
    assert {c.seeds for c in three.contrasts} == {(0, 1, 2)}


def test_an_unfinished_seed_waits():
    raw = synthetic.study(methods=('uncurl',), tasks=TASKS, examples=60, seeds=(0, 1))
    raw = [r for r in raw if (r.get('seed'), r.get('task')) != (1, 'lm-code')]
    found = verdict(gather(raw), resamples=200)
    assert {(c.seeds, c.tasks) for c in found.contrasts} == {((0,), TASKS)}
    assert {c.seeds for c in found.choice} == {(0, 1)}


def test_missing_cells_are_said():
    raw = synthetic.study(methods=('uncurl',), tasks=TASKS, examples=60)
    raw = [r for r in raw if r.get('keep') != 8 or r.get('method') != 'uncurl']
    records = gather(raw)
    text = str(words(verdict(records, resamples=200), records))
    assert 'not complete: 6 of 30 cells' in text
    assert 'Not measured yet: factor 4' in text


def test_no_pair_gives_no_answer():
    raw = [r for r in synthetic.study(tasks=TASKS, examples=60) if r.get('method') != 'none']
    records = gather(raw)
    found = verdict(records, resamples=200)
    assert not found.contrasts and headline(found).startswith('No answer yet')
    assert found.rivals and words(found, records)[0].title == 'Answer'
    assert verdict(gather([]), resamples=200).method is None


def test_rivals_are_ranked_as_planted():
    methods = ('uncurl', 'random', 'm_smoe')
    found, text = answer(methods=methods, examples=120, noise=0.02)
    rivals = {r.method: r for r in found.rivals}
    assert rivals['random'].overall.value == pytest.approx(0.05, abs=0.01)
    assert rivals['random'].overall.status == 'better' and len(rivals['random'].pairs) == 6
    assert 'UNCURL against random at equal size' in text


def test_budget_never_hides_a_measured_win():
    # From 16 the gain is larger but unsure; from 8 it is small and sure.
    raw = synthetic.study(methods=('uncurl',), tasks=('entails',), keep={8: (4,), 16: (4,)})
    rng = np.random.default_rng(0)
    base = next(r for r in raw if r.get('method') == 'none' and r['keep'] == 4)
    scratch = np.array(base['outputs']['examples']['log_likelihood'])
    noise = {8: 0.01, 16: 2.0}
    for r in raw:
        if r.get('method') == 'uncurl':
            jitter = rng.normal(0, noise[r['experts']], scratch.size)
            jitter -= jitter.mean()
            gain = 0.02 if r['experts'] == 8 else 0.05
            r['outputs']['examples']['log_likelihood'] = (scratch + jitter + gain).tolist()
    records = gather(raw)
    text = words(verdict(records, resamples=400), records)[0].bullets[0]
    assert 'shrinking from 8' in text and 'beats pretraining 4.' in text
    assert 'largest' not in text and '16->4 within noise' in text


def test_majority_level_tasks_carry_no_accuracy():
    raw = synthetic.study(methods=('uncurl',), tasks=('entails', 'causes'), examples=60)
    notes = raw[0]['outputs']['task_notes']
    notes['entails']['majority'], notes['causes']['majority'] = 0.99, 0.01
    found = verdict(gather(raw), resamples=200)
    assert found.uninformative == ('entails',)


def test_few_groups_are_said():
    raw = synthetic.study(methods=('uncurl',), tasks=('entails', 'causes'), examples=60)
    for r in raw:
        if r['kind'] == 'score':
            n = len(r['outputs']['examples']['group'])
            groups = 1 if r['task'] == 'entails' else 3
            r['outputs']['examples']['group'] = [str(i % groups) for i in range(n)]
    notes = verdict(gather(raw), resamples=200).notes
    assert 'only 3 groups' in notes[0] and 'one group' in notes[1]


def test_one_example_decides_nothing():
    raw = synthetic.study(methods=('uncurl',), tasks=('entails', 'lm-code'), examples=60)
    for r in raw:
        if r['kind'] == 'score' and r['task'] == 'lm-code':
            examples = r['outputs']['examples']
            gain = 5.0 if r['method'] == 'uncurl' else 0.0
            examples |= {k: v[:1] for k, v in examples.items() if v is not None}
            examples['log_likelihood'] = [gain - 3.0]
    records = gather(raw)
    found = verdict(records, resamples=200)
    assert found.single == ('lm-code',) and not found.text
    assert {c.tasks for c in found.contrasts} == {('entails',)}
    table = tables.quality(found, records)
    row = next(row for row in table.rows if row[0].text == 'UNCURL 32->8')
    assert row[2].text == '2.000' and table.columns == ('model', 'entails', 'lm-code')
    assert 'no comparison or mean rests' in found.notes[-1]
