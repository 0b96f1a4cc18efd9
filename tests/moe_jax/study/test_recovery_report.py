"""The report of a recovery study: shares against known effects, words, half studies, files."""

import io
import json
import random

import numpy as np
import pytest
from rich.console import Console

from moe_jax.study import report
from moe_jax.study.report import html, markdown, recovery
from moe_jax.study.report.recovery import page_of
from moe_jax.study.report.recovery.load import gather
from moe_jax.study.report.recovery.standings import finding
from tests.moe_jax.study import recovery_records

HOSTILE = '<script>alert(1)</script>|`*x*`\n# [a](javascript:b) $\\frac$ [red]'


@pytest.fixture(scope='module')
def raw() -> list[dict]:
    return recovery_records.study()


@pytest.fixture(scope='module')
def found(raw):
    return finding(gather(raw))


def build(raw):
    return recovery.build(gather(raw), figures=False)


def text(raw) -> str:
    document = page_of(build(raw)).document
    return markdown.render(document) + html.render('x', document)


def write(path, raw):
    path.write_text(''.join(json.dumps(record) + '\n' for record in raw))
    return path


def test_shares_are_those_that_were_put_in(found):
    for ranking in found.rankings:
        lost, won = recovery_records.EFFECTS[ranking.shrink]
        assert ranking.lost.value == pytest.approx(lost, abs=0.002)
        assert ranking.lost.low < lost < ranking.lost.high
        for s in ranking.recipes:
            share = won[s.model.recipe] / lost
            assert s.share.value == pytest.approx(share, abs=0.03)
            assert s.share.low - 0.02 < share < s.share.high + 0.02
            assert s.short.value == pytest.approx(
                won[s.model.recipe] - lost - recovery_records.GAIN, abs=0.003)
            assert s.won.value == pytest.approx(won[s.model.recipe], abs=0.003)
            assert set(s.by_task) == set(recovery_records.TASKS) and s.seeds == 3
        assert ranking.ceiling.share.value == pytest.approx(
            1 + recovery_records.GAIN / lost, abs=0.03)


def test_a_share_is_the_ratio_of_two_means_of_documents(raw):
    one = [r for r in raw if r['kind'] == 'study' or (
        r['kind'] == 'recover' and (r['seed'], r['task']) == (0, 'lm-code'))]
    values = {(r['shrink'], r['recipe']): np.mean(r['outputs']['examples']['log_likelihood'])
              for r in one[1:]}
    (half,) = (r for r in finding(gather(one)).rankings if r.shrink == 'half')
    for s in half.recipes:
        won = values['half', s.model.recipe] - values['half', 'none']
        assert s.share.value == pytest.approx(won / (values['none', 'none']
                                                     - values['half', 'none']))
        assert s.loss == pytest.approx(-values['half', s.model.recipe])


def test_ranking_ties_and_what_is_forgotten(found):
    half, sparse = found.rankings
    assert [s.model.recipe for s in half.recipes][2] == 'routers'
    assert [gap.status for gap in half.behind] == ['noise', 'better']
    assert [s.model.recipe for s in sparse.recipes] == ['plain', 'routers', 'some']
    assert [s.won.status for s in sparse.recipes] == ['better', 'noise', 'worse']
    changes = {s.model.recipe: s.elsewhere for s in half.recipes}
    assert changes['plain'] == pytest.approx(0.5) and changes['some'] == pytest.approx(0.25)
    assert half.shrunk.elsewhere == 0.0
    assert {s.model.recipe: s.trained for s in half.recipes} == {
        'plain': 1000, 'some': 250, 'routers': 20}
    assert {s.seconds for s in half.recipes} == {3.0}  # the median of 2, 3 and 4


def test_what_is_said(raw):
    said = text(raw)
    for words in (
        '"half" (8 of 16 experts kept by frequency) costs 0.200 nats',
        '"sparse" (50% of the weights inside the experts set to zero by wanda) costs 0.100 nats',
        'Within noise of no recovery at all: routers.', 'Worse than no recovery: some.',
        'More than 100% means better on the task than the unshrunk model was',
        '3 seeds: each resample draws seeds as well as documents',
        'Every recipe gets 5 steps over the same 640 tokens of the task',
        'the one of 0.001 and 0.01 with the lowest loss on 8 rows kept back from training',
        '50.0% of the weights inside the experts are zero, and stay so in every recovery',
        'lm-code: Split by document.', 'diverged',
    ):
        assert words.replace('"', '&quot;') in said or words in said, words


def test_lost_zeros_are_told(raw):
    changed = json.loads(json.dumps(raw))
    cell = next(r for r in changed if r['id'] == '1-lm-code-sparse-plain')
    cell['outputs']['zeros'] = 0.1
    assert 'are down to' in text(changed) and 'stay so' not in text(changed)


def test_no_loss_leaves_nothing_to_win_back():
    raw = recovery_records.study(effects={'half': (0.0, {'plain': 0.1})})
    built = build(raw)
    assert built.finding.rankings[0].recipes[0].share is None
    assert 'there is no loss to win back' in built.sections[0].paragraphs[1]
    assert 'recovery' not in [f.name for f in recovery.build(gather(raw)).figures]


@pytest.mark.parametrize('share', [0.0, 0.05, 0.2, 0.5, 0.8, 0.97])
def test_any_part_of_a_study_reports(raw, share):
    rng = random.Random(int(100 * share))
    part = [r for r in raw if rng.random() < share]
    built = build(part)
    assert built.sections[0].title == 'Answer' and text(part)


def test_order_repeats_and_strangers_do_not_matter(raw):
    mixed = raw + raw[3:9]
    random.Random(0).shuffle(mixed)
    assert text(mixed) == text(raw)
    plan = json.loads(json.dumps(raw))
    plan[0]['outputs']['cells'] = [r['id'] for r in plan[1:]]
    stranger = plan[5] | {'id': 'stranger', 'recipe': 'gone'}
    assert 'gone' not in {s.model.recipe for r in build([*plan, stranger]).finding.rankings
                          for s in r.recipes}


def test_records_that_cannot_be_used_are_named(raw):
    broken = json.loads(json.dumps(raw))
    broken[-1]['outputs']['examples']['log_likelihood'][0] = float('nan')
    broken[-2]['outputs']['search'] = {'rates': [1.0], 'losses': []}
    problems = gather(broken).problems
    assert len(problems) == 2 and 'not finite' in ''.join(problems)


def test_files_and_printing(raw, tmp_path):
    made = report.write(write(tmp_path / 'records.jsonl', raw), tmp_path / 'out')
    assert isinstance(made, recovery.Report) and made.folder == tmp_path / 'out'
    first = {p.name: p.read_bytes() for p in (tmp_path / 'out').rglob('*') if p.is_file()}
    assert set(first) == {'report.md', 'report.html', 'table.md', 'recovery.png'}
    report.write(tmp_path / 'records.jsonl', tmp_path / 'out')
    assert first == {p.name: p.read_bytes() for p in (tmp_path / 'out').rglob('*') if p.is_file()}
    for width in (60, 100, 200):
        console = Console(width=width, record=True, file=io.StringIO())
        report.show(made, console)
        assert 'What to keep in mind' in console.export_text()


def test_text_of_records_is_no_markup(raw):
    evil = json.loads(json.dumps(raw).replace('"plain"', json.dumps(HOSTILE)))
    built = recovery.build(gather(evil))  # and draws
    document = page_of(built).document
    page = markdown.render(document)
    assert '<script' not in page + html.render('x', document)
    assert '[a](' not in page and '\n# [a' not in page


def test_records_of_a_kind_not_known(raw, tmp_path):
    other = json.loads(json.dumps(raw))
    other[0]['outputs']['about'] = 'weather'
    with pytest.raises(ValueError, match="study about 'weather'; this version reports on"):
        report.write(write(tmp_path / 'records.jsonl', other), tmp_path)
