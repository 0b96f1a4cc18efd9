"""The report as files: the same bytes from the same records, half studies, hostile strings."""

import copy
import io
import random
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from moe_jax.pictures.style import spread
from moe_jax.study import report
from moe_jax.study.report import html, markdown
from moe_jax.study.report.expert_count import background, tables
from moe_jax.study.report.expert_count import report as expert_count
from moe_jax.study.report.expert_count.load import gather, load
from moe_jax.study.report.expert_count.verdict import verdict
from tests.moe_jax.study import synthetic

SMALL = {'methods': ('uncurl', 'random'), 'tasks': ('entails', 'lm-code'), 'examples': 45}
HOSTILE = '<script>alert(1)</script>|`*x*`\n# [a](javascript:b) "\' $\\frac$ [red]'


def text(raw: list[dict]) -> str:
    built = expert_count.build(gather(raw), figures=False)
    blocks = expert_count.blocks(built)
    return markdown.render(blocks) + html.render('x', blocks)


def printed(raw: list[dict], width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    report.show(expert_count.build(gather(raw), figures=False), console)
    return console.export_text()


@pytest.fixture(scope='module')
def raw() -> list[dict]:
    return synthetic.study(**SMALL)


def test_order_and_repeats_do_not_matter(raw):
    mixed = raw + raw[3:9]
    random.Random(0).shuffle(mixed)
    assert text(mixed) == text(raw)


def test_a_later_record_of_the_same_id_wins(raw):
    old = copy.deepcopy(raw[1])
    old['outputs']['parameters'] = 7
    assert gather([old, *raw]).pretrains == gather(raw).pretrains


def test_records_outside_the_plan_are_left_out(raw):
    plan = copy.deepcopy(raw)
    stale = next(r for r in plan if r['kind'] == 'score') | {'id': 'stale', 'task': 'gone'}
    plan[0]['outputs']['cells'] = [r['id'] for r in plan[1:]]
    records = gather([*plan, stale])
    assert 'gone' not in records.study.tasks
    assert any('1 record(s) belong to an earlier form' in p for p in records.problems)


def test_torn_and_damaged_lines(tmp_path, raw):
    path = synthetic.write(tmp_path / 'records.jsonl', raw)
    clean = load(path)
    path.write_text(path.read_text() + '{"id": "x", "kind": "sc')
    assert load(path).problems == clean.problems == ()
    path.write_text('{torn\n[1]\n' + path.read_text())
    assert '2 unreadable' in load(path).problems[0]


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (lambda o: o['examples']['log_likelihood'].__setitem__(0, float('nan')), 'not finite'),
        (lambda o: o['examples']['weight'].pop(), 'different lengths'),
        (lambda o: o.pop('examples'), "no 'examples'"),
        (lambda o: o['examples'].update(weight=[0.0] * 45), 'weights sum to 0'),
    ],
)
def test_unusable_scores_are_named(raw, change, said):
    broken = copy.deepcopy(raw)
    record = next(r for r in broken if r['kind'] == 'score')
    change(record['outputs'])
    records = gather(broken)
    assert len(records.scores) == len(gather(raw).scores) - 1
    assert record['id'] in records.problems[0] and said in records.problems[0]


@pytest.mark.parametrize('share', [0.0, 0.02, 0.3, 0.6, 0.9])
def test_half_a_study_reports(raw, share):
    kept = raw[: int(share * len(raw))]
    assert 'Answer' in text(kept)
    without_plan = [r for r in kept if r['kind'] != 'study']
    assert 'Answer' in text(without_plan)
    assert 'Answer' in printed(kept, 80)


def test_missing_cells_are_dashes(raw):
    gone = [r for r in raw if (r.get('method'), r.get('keep')) != ('uncurl', 16)]
    records = gather(gone)
    found = verdict(records, resamples=200)
    rows = {row[0].text: row for row in tables.quality(found, records).rows}
    assert [c.text for c in rows['UNCURL 32->16'][1:]] == ['–'] * 3
    answer = {row[0].text: row for row in tables.answer(found, records).rows}
    assert answer['32->16'][2].text == '–' and answer['16->8'][2].text != '–'


def test_the_main_table_by_hand():
    raw = synthetic.study(
        methods=('uncurl',), tasks=('entails',), keep={8: (4,)}, planted=lambda z, g: 0.5
    )
    records = gather(raw)
    found = verdict(records)
    table = tables.quality(found, records)
    assert table.columns == ('model', 'entails')
    assert [row[0].text for row in table.rows] == ['scratch 4', 'scratch 8', 'UNCURL 8->4']
    values = {s.model.method + str(s.model.keep): s.examples for s in records.scores}
    shrunk = values['uncurl4'].log_likelihood
    assert table.rows[2][1].text == f'{shrunk.mean():.3f} (+)'
    difference = shrunk - values['none4'].log_likelihood
    low, high = map(float, re.findall(r'[+-][\d.]+', table.rows[2][1].detail))
    assert low < difference.mean() < high
    accuracy = tables.accuracy(found, records)
    assert accuracy.rows[0][0].text == 'commonest answer' and accuracy.rows[0][1].text == '55.0'
    assert accuracy.rows[3][1].text.split()[0] == f'{100 * values["uncurl4"].correct.mean():.1f}'


def test_recovery_stands_on_equal_cells(raw):
    records = gather(raw)
    table = background.recovery(records)
    assert table.columns[1:] == ('just shrunk', 'routers warmed', 'pre-fine-tuned', 'fine-tuned')
    model = next(s.model for s in records.scores if s.model.method == 'uncurl')
    gaps = background.stage_gaps(records, model)
    final = {
        s.task: s.stages[-1].log_likelihood
        for s in records.scores
        if s.model == (model.keep, model.keep, 'none')
    }
    own = [s for s in records.scores if s.model == model]
    assert gaps['warmed'] == pytest.approx(
        np.mean([s.stages[1].log_likelihood - final[s.task] for s in own])
    )


def test_times_stay_out_of_the_main_tables(tmp_path, raw):
    slow = [r | {'seconds': 9e5} if 'seconds' in r else r for r in raw]
    found = [expert_count.build(gather(r), figures=False) for r in (raw, slow)]
    for name in ('answer', 'accuracy', 'quality', 'recovery', 'pretrained'):
        assert found[0].tables[name] == found[1].tables[name]
    assert found[0].tables['timings'] != found[1].tables['timings']


def hostile(value, words=('entails', 'speeches', 'random', 'Expert count', 'cpu', 'document 1')):
    """Every one of `words`, wherever it stands in the records, becomes an attack."""
    if isinstance(value, dict):
        return {hostile(k, words): hostile(v, words) for k, v in value.items()}
    if isinstance(value, list):
        return [hostile(v, words) for v in value]
    return HOSTILE + value if value in words else value


class Tags(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.text = ''
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found += [(tag, name) for name, _ in attrs] or [(tag, '')]

    def handle_data(self, data):
        self.text += data


def test_hostile_strings_are_inert(tmp_path, raw):
    path = synthetic.write(tmp_path / 'records.jsonl', hostile(raw))
    made = report.write(path, tmp_path)
    tags = Tags((tmp_path / 'report.html').read_text())
    assert not {tag for tag, _ in tags.found} & {'script', 'a', 'iframe', 'link', 'object'}
    assert not {name for _, name in tags.found} & {'href', 'onload', 'onerror', 'srcdoc'}
    assert '<script>alert(1)</script>' in tags.text  # shown, as text
    plain = (tmp_path / 'report.md').read_text()
    assert '<script' not in plain and '[a](javascript' not in plain
    assert not [line for line in plain.split('\n') if line.startswith('# [a]')]
    rows = [r for r in plain.split('\n') if r.startswith('| ')]
    assert all(len(re.findall(r'(?<!\\)\|', r)) >= 2 for r in rows)
    assert '[red]' in printed(hostile(raw), 200)
    assert len(made.figures) == 7


def test_files_are_whole_and_figures_not_blank(tmp_path, raw):
    path = synthetic.write(tmp_path / 'records.jsonl', raw)
    out = tmp_path / 'deep' / 'out'
    made = report.write(path, out)
    names = sorted(str(p.relative_to(out)) for p in out.rglob('*') if p.is_file())
    figures = sorted(f'figures/{f.name}.png' for f in made.figures)
    assert names == [*figures, 'report.html', 'report.md', 'table.md'] and len(figures) == 7
    for figure in made.figures:
        pixels = imread(io.BytesIO(figure.png))
        assert pixels.shape[1] == 1800
        assert np.mean(pixels[..., :3].min(axis=-1) < 0.9) > 0.005
    page = (out / 'report.html').read_text()
    assert page.count('data:image/png;base64,') == 7 and 'http' not in page.replace(
        'http-equiv', ''
    )
    assert all((out / name).exists() for name in re.findall(r'\((figures/.*?)\)', made_md(out)))
    before = {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
    report.write(path, out)
    assert before == {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}


def made_md(out) -> str:
    return (out / 'report.md').read_text()


def test_a_failed_write_leaves_the_old_report(tmp_path, raw, monkeypatch):
    path = synthetic.write(tmp_path / 'records.jsonl', raw)
    monkeypatch.setattr(expert_count, '_figures', lambda *_: ((), ''))
    report.write(path, tmp_path)
    old = made_md(tmp_path)

    def full(_):
        raise OSError('disk full')

    monkeypatch.setattr('os.fsync', full)
    with pytest.raises(OSError, match='disk full'):
        report.write(path, tmp_path)
    assert made_md(tmp_path) == old
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('.')]


def test_without_matplotlib_words_and_tables_remain(tmp_path, raw, monkeypatch):
    drawing = ('moe_jax.study.report.figures', 'moe_jax.pictures')
    for name in [m for m in sys.modules if m.startswith(drawing)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    made = report.write(synthetic.write(tmp_path / 'records.jsonl', raw), tmp_path)
    assert not made.figures and "pip install 'moe-jax[plot]'" in made.notice
    assert 'Figures were not drawn' in made_md(tmp_path)
    assert 'UNCURL 32-' in made_md(tmp_path)


def test_console_fits_its_width(raw):
    wide, narrow = printed(raw, 160), printed(raw, 62)
    spans = [len(re.findall(r'^ .*\[[+-]', page, re.M)) for page in (wide, narrow)]
    assert spans[0] > spans[1]
    assert max(map(len, narrow.split('\n'))) <= 62


@pytest.mark.full
def test_figures_of_half_a_study_draw(raw):
    for kind in ('pretrain', 'latency', 'usage', 'embedding'):
        drawn = expert_count.build(gather([r for r in raw if r['kind'] == kind])).figures
        assert [f.name for f in drawn] == ([] if kind == 'pretrain' else [kind])
    scores = [r for r in raw if r['kind'] == 'score']
    drawn = expert_count.build(gather([r for r in scores if r['method'] == 'none'])).figures
    assert [f.name for f in drawn] == ['quality']


def test_labels_are_spread_without_changing_order():
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 1, 9)
    places = np.array(spread(values.tolist(), 0.1))
    assert np.all(np.diff(places[np.argsort(values)]) >= 0.1 - 1e-9)
    assert spread([0.0, 0.5], 0.1) == [0.0, 0.5]
