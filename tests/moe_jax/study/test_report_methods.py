"""Many methods side by side, on records whose every number is set by hand."""

import io
from itertools import permutations

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from scipy import stats

from moe_jax.study import report
from moe_jax.study.report import markdown
from moe_jax.study.report.expert_count import report as expert_count
from moe_jax.study.report.expert_count import tables
from moe_jax.study.report.expert_count.lineup import agreement
from moe_jax.study.report.expert_count.load import gather
from moe_jax.study.report.expert_count.verdict import verdict
from moe_jax.study.report.expert_count.words import words
from tests.matrix import rows
from tests.moe_jax.study import synthetic

TASKS = ('lm-code', 'lm-speeches', 'entails')
# Method: nats lost at once on the two text tasks and the choice task, gain over from scratch.
PLANTED = {
    'uncurl': ((0.9, 1.1, 0.5), -0.05),
    'reap': ((0.2, 0.4, -0.1), 0.02),
    'm_smoe': ((0.1, 0.3, 0.3), 0.01),
    'random': ((0.5, 0.7, 0.0), -0.08),
}
UNSHRUNK = {'lm-code': -3.0, 'lm-speeches': -4.0, 'entails': -0.7}


def planted(more: dict[str, tuple] | None = None, seeds=(0, 1)) -> list[dict]:
    """Records at 8->4 with exactly these losses and gains, up to a wobble of the examples."""
    effects = PLANTED | (more or {})
    raw = synthetic.study(
        seeds=seeds, methods=tuple(effects), tasks=TASKS, examples=30, keep={8: (4,)}
    )
    base = {
        (r['seed'], r['task']): r['outputs']['examples']['log_likelihood']
        for r in raw
        if r.get('method') == 'none' and r['keep'] == 4
    }
    for r in raw:
        if r['kind'] != 'score':
            continue
        lost, gain = effects.get(r['method'], ((0.0,) * 3, 0.0))
        at_once = UNSHRUNK[r['task']] - lost[TASKS.index(r['task'])]
        r['outputs']['stages'][0]['log_likelihood'] = at_once
        if r['method'] != 'none':
            wobble = np.resize([1e-3, -1e-3], 30)
            values = np.array(base[r['seed'], r['task']]) + gain + wobble
            r['outputs']['examples']['log_likelihood'] = values.tolist()
    return raw


def without(raw: list[dict], **fields) -> list[dict]:
    return [r for r in raw if any(r.get(k) != v for k, v in fields.items())]


def grid(raw: list[dict]) -> dict[str, list[str]]:
    records = gather(raw)
    table = tables.methods(verdict(records, resamples=200))[8]
    return {row[0].text: [c.text for c in row[1:]] for row in table.rows}


def said(raw: list[dict]) -> dict[str, tuple[str, ...]]:
    records = gather(raw)
    return {s.title: s.bullets for s in words(verdict(records, resamples=200), records)}


def test_the_table_by_hand():
    records = gather(planted())
    found = verdict(records, resamples=200)
    table = tables.methods(found)[8]
    assert table.columns == (
        'method', '8->4: lost, text', 'rank', '8->4: lost, choice', '8->4: after recovery', 'rank',
    )
    assert [[c.text for c in row] for row in table.rows] == [
        ['REAP', '0.300', '2', '-0.100', '+0.020 (+)', '1'],
        ['M-SMoE', '0.200', '1', '0.300', '+0.010 (+)', '2'],
        ['UNCURL', '1.000', '4', '0.500', '-0.050 (-)', '3'],
        ['random', '0.600', '3', '0.000', '-0.080 (-)', '4'],
    ]
    assert table.rows[0][1].detail == '0.200 to 0.400'
    assert 'not an interval' in table.note and 'no rank' not in table.note


def test_scores_agree_with_the_other_tables():
    records = gather(planted())
    found = verdict(records, resamples=200)
    side = {row[0].text: row[4] for row in tables.methods(found)[8].rows}
    assert side['UNCURL'] == tables.answer(found, records).rows[0][2]
    for row in tables.quality(found, records).rows:
        name = row[0].text.removesuffix(' 8->4')
        if name in side:
            assert row[-1].detail == side[name].detail and row[-1].tone == side[name].tone


def test_missing_cells_are_blank():
    raw = without(planted(), method='random', task='entails')
    rows = grid(raw)
    # Two text tasks of random remain: its losses rank, its score stands on other tasks.
    assert rows['random'] == ['0.600', '3', '–', '-0.080 (-)', '–']
    assert rows['UNCURL'][-1] == '3' and list(rows)[-1] == 'random'
    # Without the unshrunk model on the choice task, or at all, the columns of its losses go.
    lost = without(planted(), method='none', keep=8, task='entails')
    assert {row[2] for row in grid(lost).values()} == {'+0.020 (+)', '+0.010 (+)', '-0.050 (-)',
                                                       '-0.080 (-)'}
    part = without(planted(), method='none', keep=8, seed=1)
    assert grid(part)['REAP'][:3] == ['0.300', '2', '-0.100']
    assert grid(without(planted(), method='none', keep=8))['REAP'] == ['+0.020 (+)', '1']
    scratch = grid(without(planted(), method='none', keep=4))
    assert {tuple(r[3:]) for r in scratch.values()} == {('–', '–')}
    assert scratch['REAP'][:2] == ['0.300', '2']
    seed = without(planted(), method='reap', seed=1, task='lm-code')
    assert grid(seed)['REAP'][:2] == ['0.333', '–']


def test_two_methods_are_not_set_side_by_side():
    raw = without(without(planted(), method='random'), method='reap')
    assert 'Methods side by side' not in said(raw)
    made = expert_count.build(gather(raw), figures=False)
    assert not [name for name in made.tables if name.startswith('methods')]


def test_the_finding():
    (text,) = said(planted())['Methods side by side']
    assert text.startswith(
        '8->4: right after shrinking M-SMoE (0.200), REAP (0.300) and random (0.600) lose the '
        'fewest nats on the text tasks, UNCURL (1.000) the most.'
    )
    assert 'After recovery REAP is best (+0.020' in text and 'none of the 3 others' in text
    # Ranks 2 1 4 3 against 1 2 3 4: 1 - 6 * 4 / (4 * 15).
    assert 'not measurably related (Spearman correlation +0.60 over 4 methods)' in text
    (text,) = said(without(planted(), method='random', task='entails'))['Methods side by side']
    assert 'random stands on other tasks or seeds than most' in text


@pytest.mark.parametrize('sign', [1, -1])
def test_orders_that_keep_or_turn(sign):
    more = {
        f'method {n}': ((0.1 * n,) * 3, -0.01 * sign * n - 0.1 * (sign < 0)) for n in range(4, 9)
    }
    raw = planted(more)
    for method in PLANTED:
        raw = without(raw, method=method)
    (text,) = said(raw)['Methods side by side']
    expected = 'well at once tends to do well' if sign > 0 else 'turn the order round'
    assert expected in text and f'correlation {sign:+.2f} over 5' in text


def test_many_rivals_are_named_by_the_best_and_the_worst():
    more = {f'method {n}': ((0.4,) * 3, -0.01 * n) for n in range(1, 5)}
    records = gather(planted(more))
    sections = {s.title: s for s in words(verdict(records, resamples=200), records)}
    lead, best, worst = sections['Methods'].bullets
    assert 'against 7 other methods' in lead and 'better in 1 and worse in 6' in lead
    assert best.startswith('Best of the others: UNCURL against REAP')
    assert worst.startswith('Worst of the others: UNCURL against random')
    assert 'one of 8 methods' in ' '.join(sections['Answer'].paragraphs)
    few = without(planted(more), method='method 4')
    assert len(said(few)['Methods']) == 6


def test_a_rival_on_fewer_tasks_is_neither_best_nor_worst():
    more = {f'method {n}': ((0.4,) * 3, -0.01 * n) for n in range(1, 5)}
    raw = without(planted(more), method='random', task='entails')
    lead, _, worst = said(raw)['Methods']
    assert 'fewer or other tasks: 1 method' in lead and 'UNCURL against method 4' in worst


def test_agreement_is_exact_for_few_methods():
    first, second = [1, 2, 3, 4, 5], [2, 1, 3, 5, 4]
    observed = np.corrcoef(first, second)[0, 1]
    every = [np.corrcoef(first, p)[0, 1] for p in permutations(second)]
    found = agreement(first, second)
    assert found.correlation == pytest.approx(observed)
    assert found.chance == pytest.approx(np.mean(np.abs(every) >= abs(observed) - 1e-9))
    assert agreement([1, 2, 3], [1, 2, 3]).chance == pytest.approx(2 / 6)
    assert agreement([1, 2], [1, 2]) is None and agreement([1, 1, 1], [1, 2, 3]) is None
    long = np.random.default_rng(0).permutation(12)
    assert agreement(range(12), long).chance == pytest.approx(
        stats.spearmanr(range(12), long).pvalue
    )


@pytest.mark.parametrize('count', rows([3, 30], quick=[3]))
def test_the_figure_is_drawn(tmp_path, count):
    more = {f'method {n}': ((0.01 * n,) * 3, -0.002 * n) for n in range(count - 3)}
    raw = without(planted(more, seeds=(0,)), method='random')
    path = synthetic.write(tmp_path / 'records.jsonl', raw)
    made = report.write(path, tmp_path)
    text = (tmp_path / 'report.md').read_text()
    order = ('## Methods side by side', 'figures/methods.png', '**Methods from 8', '## How far')
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    pixels = imread(tmp_path / 'figures' / 'methods.png')
    assert pixels.shape[1] == 1800 and np.mean(pixels[..., :3].min(axis=-1) < 0.9) > 0.005
    assert '**Methods from 8' in (tmp_path / 'table.md').read_text()
    assert 'recovery' in {f.name for f in made.figures}


@pytest.mark.full
def test_what_half_a_study_has_is_drawn():
    for kept in (
        without(planted(), method='none', keep=4),
        without(planted(), method='none', keep=8),
        without(planted(), method='random', task='entails'),
        [r for r in planted() if r['kind'] == 'score'],
    ):
        assert 'methods' in {f.name for f in expert_count.build(gather(kept)).figures}


def test_a_narrow_console_leaves_the_wide_table_out():
    def printed(width: int) -> str:
        console = Console(width=width, record=True, file=io.StringIO())
        report.show(expert_count.build(gather(planted()), figures=False), console)
        return console.export_text()

    assert 'Methods from 8 experts' in printed(120)
    narrow = printed(44)
    assert 'Methods from 8 experts' not in narrow and 'Methods side by side' in narrow


def test_hostile_names_of_methods_are_inert():
    raw = planted({'<b>|x': ((0.4,) * 3, 0.0)})
    made = expert_count.build(gather(raw), figures=False)
    text = markdown.render(expert_count.blocks(made))
    assert '<b>' not in text and '\\|x' in text
