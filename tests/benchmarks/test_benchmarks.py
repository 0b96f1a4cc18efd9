"""The frame of the benchmarks, on records made by hand; no benchmark runs."""

import argparse
import json

import pytest

from benchmarks import __main__ as command
from benchmarks import measured, page
from benchmarks.cases import CASES
from benchmarks.measured import Measured

HERE = {'processor': 'abacus', 'cores': 2, 'load': 0.5}


def record(what, value, settings='E=8', **fields):
    return measured.record('layer', settings, Measured(what, value, **fields), HERE)


@pytest.mark.parametrize(('value', 'target', 'met'), [
    (1.0, None, None), (1.0, ('<=', 1.0), True), (1.1, ('<=', 1.0), False),
    (1.0, ('>=', 1.0), True), (0.9, ('>=', 1.0), False), (float('nan'), ('<=', 1.0), False)])
def test_whether_a_target_is_met(value, target, met):
    assert Measured('x', value, target=target).met is met


def test_the_latest_number_of_everything_is_shown_once_with_its_settings():
    rows = [record('ours', 9.0, unit='ms'),
            record('ratio', 0.5, unit='x', target=('>=', 1.0), spread=(0.4, 0.61234)),
            record('ours', 1234.5, unit='ms', target=('<=', 2000.0)),
            record('ours', 0.001234, settings='E=16')]
    assert measured.markdown(rows) == '\n'.join([
        '**layer**: E=8', '', '| | median | all rounds | target | met |', '|---|---|---|---|---|',
        '| ours | 1,234 ms |  | <= 2000.0 | yes |', '| ratio | 0.5 x | 0.4 - 0.612 | >= 1.0 | no |',
        '', '**layer**: E=16', '', '| | median | all rounds | target | met |',
        '|---|---|---|---|---|', '| ours | 0.00123 s |  |  |  |', '',
        'Measured on: processor abacus, cores 2'])


def test_a_median_keeps_the_spread_and_ratios_are_taken_inside_rounds():
    theirs, ours = [2.0, 9.0, 4.0], [1.0, 3.0, 4.0]
    middle, least = measured.compared('theirs over ours', theirs, ours, ('>=', 1.5))
    assert (middle.value, middle.spread, middle.met) == (2.0, (1.0, 3.0), True)
    assert (least.value, least.met) == (2.0, None)
    assert measured.best({'a': [1.0, 9.0, 9.0], 'b': [5.0, 5.0, 5.0]}) == 'b'


def test_every_run_of_a_round_takes_its_turn_and_the_first_round_does_not_count():
    seen = []
    times = measured.rounds(2, [lambda: seen.append('a'), lambda: seen.append('b')],
                            lambda: seen.append('after'))
    assert seen == ['a', 'after', 'b', 'after'] * 3
    assert [len(one) for one in times] == [2, 2]


def test_the_largest_difference_is_relative_to_the_largest_number():
    assert measured.apart([1.0, 2.0], [1.5, -4.0]) == 1.5


def test_options_reach_the_process_of_each_benchmark():
    args = command.arguments().parse_args(['layer', '--small', '--rounds', '3', '--seed', '7'])
    again = command.arguments().parse_args(['layer', *command.options(args)])
    assert again == args
    assert command.options(command.arguments().parse_args([])) == ['--seed', '0']


def test_small_runs_have_no_targets(tmp_path, capsys):
    out = tmp_path / 'numbers.jsonl'
    missed = [Measured('ours', 3.0, target=('<=', 1.0))]
    for small, answer in ((True, False), (False, True)):
        args = argparse.Namespace(small=small, out=out)
        assert measured.tell('layer', 'E=8', missed, args) is answer
    told = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(one['target'], one['met']) for one in told] == [(None, None), ('<= 1.0', False)]
    assert command.read(out) == told


def test_tables_go_between_the_markers_of_a_page(tmp_path, monkeypatch):
    target, numbers = tmp_path / 'page.md', tmp_path / 'numbers.jsonl'
    numbers.write_text(json.dumps(record('ours', 2.0)) + '\n')
    target.write_text(f'above\n{page.BEGIN}\nold\n{page.END}\nbelow\n')
    for _ in range(2):
        monkeypatch.setattr('sys.argv', ['x', '--show', str(numbers), '--write', str(target)])
        command.main()
        text = target.read_text()
        assert text.startswith(f'above\n{page.BEGIN}\n\n**layer**: E=8')
        assert text.endswith(f'cores 2\n\n{page.END}\nbelow\n')
        assert 'old' not in text
    with pytest.raises(ValueError, match=r'p\.md: has .*begin --> 0 times'):
        page.between(f'{page.END}', 'new', 'p.md')
    with pytest.raises(ValueError, match='in this order'):
        page.between(f'{page.END}{page.BEGIN}', 'new', 'p.md')


def test_writing_needs_a_file_to_show(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['x', '--write', 'page.md'])
    with pytest.raises(SystemExit):
        command.main()
    assert 'name the file with --show' in capsys.readouterr().err


def test_growth_is_drawn_from_records_with_the_least_size_at_one(tmp_path):
    pytest.importorskip('matplotlib')
    from benchmarks import pictures

    def growth(what, value):
        return measured.record('growth', 's', Measured(what, value), HERE)

    rows = [growth('layer, experts 8', 4.0), growth('layer, experts 64', 5.0),
            growth('layer, experts 64, over proportional', 1.25),
            growth('model, experts per token 2', 3.0), record('layer, experts 8', 7.0)]
    found = pictures.curves(rows)
    assert found == {'experts': {'layer': {8: 1.0, 64: 1.25}},
                     'experts per token': {'model': {2: 1.0}}}
    (path,) = pictures.draw(rows, tmp_path / 'pictures')
    assert path.read_bytes().startswith(b'\x89PNG')
    with pytest.raises(ValueError, match="no records of 'growth'"):
        pictures.draw(rows[-1:], tmp_path)


def test_every_case_names_a_module_of_this_folder():
    from pathlib import Path

    folder = Path(command.__file__).parent
    assert [case.module for case in CASES.values() if not (folder / f'{case.module}.py').exists()
            ] == []
