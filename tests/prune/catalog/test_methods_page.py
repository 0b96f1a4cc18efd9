"""docs/methods.md is what the docstrings say, and what it says of the planner is so."""

import sys
from pathlib import Path

import pytest

import prune
from moe_jax.cli import main
from prune.catalog import describe, docstrings, registry

PAGE = Path(__file__).parents[3] / 'docs/methods.md'
NAMES = [row.name for row in prune.methods()]
# A method of each form that needs no statistics.
PLAIN = {'scores': 'router_norm', 'choose': 'random', 'plan': 'stun'}
AMOUNT = {'experts': 3, 'ratio': 0.5, 'mass': 0.5, 'parameters': 10**9, 'memory': 10**9}
SETTING = {'gates': 'preserve_mass', 'replace': 'mean', 'protect': 'super'}


def test_the_page_is_made_of_the_docstrings():
    assert PAGE.read_text() == describe.markdown(), (
        'run `moe-jax methods --markdown > docs/methods.md`')


@pytest.mark.parametrize('name', NAMES)
def test_every_method_has_a_section_with_all_its_options(name):
    page = PAGE.read_text()
    assert page.count(f'\n### {name}\n') == 1 and f'| [{name}](#{name}) |' in page
    section = page.partition(f'\n### {name}\n')[2].partition('\n### ')[0]
    assert registry.method(name).doc.splitlines()[0] in section
    for option, default in prune.options(name).items():
        assert section.count(f'`{option}` = `{default!r}`') == 1
    for statistic in registry.method(name).reads(prune.options(name)):
        assert f'`{statistic}`' in section
    for key, value in prune.observe_options(name).items():
        assert f'{key}={value!r}' in section


@pytest.mark.parametrize('row', prune.weight_methods(), ids=lambda row: row.name)
def test_every_criterion_for_weights_has_a_section_with_all_its_options(row):
    page = PAGE.read_text()
    head, _, rest = page.partition('\n## Weights inside experts\n')
    assert f'[{row.name}](#{row.name})' not in head and f'| [{row.name}](#{row.name}) |' in rest
    section = rest.partition(f'\n### {row.name}\n')[2].partition('\n### ')[0]
    assert registry.method(row.name).doc.splitlines()[0] in section
    for option, default in prune.weight_options(row.name).items():
        assert section.count(f'`{option}` = `{default!r}`') == 1
    for statistic in row.needs:
        assert f'`{statistic}`' in section
    for key, value in prune.observe_options(row.name).items():
        assert f'{key}={value!r}' in section
    assert describe.section(row.name).strip() == f'### {row.name}\n{section}'.strip()


def test_a_docstring_becomes_paragraphs_and_a_list():
    doc = """One line; a: no item, as it is no known name.

    size, seed: of the first, over
      two lines; and so on. rank: of the third,
    which goes on here.
    This is a paragraph.

    other: this too.
    """
    assert docstrings.prose(doc, ['size', 'seed', 'rank'], str.upper).splitlines() == [
        'One line; a: no item, as it is no known name.', '',
        '- SIZE, SEED: of the first, over', '  two lines; and so on.',
        '- RANK: of the third,', '  which goes on here.', '', 'This is a paragraph.', '',
        'other: this too.']
    assert docstrings.documented(doc, ['size', 'rank', 'other', 'few']) == {'rank', 'other'}


@pytest.mark.parametrize('form', list(PLAIN))
def test_amounts_are_those_the_planner_takes(form, cfg, params):
    assert registry.method(PLAIN[form]).form == form
    for name, value in AMOUNT.items():
        if name in describe.AMOUNTS[form]:
            plan = prune.plan(PLAIN[form], None, params, cfg, **{name: value})
            assert sorted(plan.layers) == list(cfg.moe_layers)
        else:
            with pytest.raises(ValueError, match='compares experts by their scores'):
                prune.plan(PLAIN[form], None, params, cfg, **{name: value})


@pytest.mark.parametrize('form', list(PLAIN))
def test_spreads_are_those_the_planner_takes(form, cfg, params):
    for spread in describe.SPREADS['scores']:
        def plan(spread=spread):
            return prune.plan(PLAIN[form], None, params, cfg, experts=3, spread=spread)

        if spread == 'error' and form == 'scores':
            with pytest.raises(ValueError, match='needs the statistics'):
                plan()
        elif spread in describe.SPREADS[form]:
            assert sum(layer.after for layer in plan().layers.values()) == 6
        else:
            with pytest.raises(ValueError, match='compares experts by their scores'):
                plan()


@pytest.mark.parametrize('form', list(PLAIN))
def test_what_becomes_of_the_dropped_is_asked_where_something_is_dropped(form, cfg, params, stats):
    for name, value in SETTING.items():
        if name in describe.WITH[form]:
            plan = prune.plan(PLAIN[form], stats, params, cfg, experts=3, **{name: value})
            assert plan.options[name] == value
        else:
            with pytest.raises(ValueError, match='for methods that drop experts'):
                prune.plan(PLAIN[form], stats, params, cfg, experts=3, **{name: value})


def test_the_command_prints_one_method_or_the_page(capsys, monkeypatch):
    def told(*arguments):
        monkeypatch.setattr(sys, 'argv', ['moe-jax', 'methods', *arguments])
        main()
        return capsys.readouterr().out

    assert told('--markdown') == PAGE.read_text()
    assert told('naee').startswith('### naee\n') and '`most` = `200000`' in told('naee')
    with pytest.raises(SystemExit):
        told('nae')
    assert "did you mean 'naee'?" in capsys.readouterr().err
