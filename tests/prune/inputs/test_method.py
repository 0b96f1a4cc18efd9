"""A method is checked when it is made, a package of methods when it is imported."""

import sys
from typing import Annotated, Literal

import pytest

from prune.catalog import registry
from prune.experts.methods import METHODS
from prune.inputs.discovery import discovered, find, joined
from prune.inputs.method import FORMS, Cost, Method
from prune.inputs.options import AtLeast, checked_options
from prune.weights.methods import WEIGHT_METHODS
from prune.weights.stack import TRAFFIC


def rank(stats, params, cfg, *, by: Literal['gates', 'probs'] = 'gates', seed: int = 0):
    """Ranks nothing."""


def search(stats, params, cfg, counts):
    """Searches nothing."""


def weigh(stack, *, alpha: Annotated[float, AtLeast(0.0, 'a number of 0 or more')] = 1.0):
    """Ranks no weights."""


def mask(stack, sparsity, pattern):
    """Masks nothing."""


def untyped(stats, params, cfg, *, by='gates'):
    """Its option has no type."""


FIELDS = {'name': 'made_up', 'title': 'made up', 'doc': 'Made up: does nothing.', 'paper': 'none',
          'kind': 'drop', 'cost': Cost.WEIGHTS}
WEIGH = {'kind': 'weights', 'scores': weigh, 'scope': 'matrix'}
REFUSED = {
    'no function': ({}, 'exactly one of scores, choose, plan, solve; got none'),
    'two functions': ({'scores': rank, 'choose': search}, 'got scores, choose'),
    'no paper': ({'scores': rank, 'paper': ''}, "paper=''"),
    'cost in prose': ({'scores': rank, 'cost': 'one pass'}, 'must be a Cost'),
    'kind': ({'scores': rank, 'kind': 'dropp'}, "kind='dropp'; did you mean 'drop'"),
    'form of the kind': ({'scores': rank, 'kind': 'merge'}, "kind 'merge' has no form 'scores'"),
    'parameters': ({'choose': rank}, 'choose takes stats, params, cfg, counts, then options'),
    'types of options': ({'scores': untyped}, "option 'by' needs a type and a default"),
    'need': ({'scores': rank, 'needs': ('count_top',), 'cost': Cost.PASS},
             "the statistic 'count_top'; did you mean 'count_top1'"),
    'option of needs': ({'scores': rank, 'option_needs': {'bye': {}}}, "'bye', which is no option"),
    'value of needs': ({'scores': rank, 'option_needs': {'by': {'gate': ()}}}, "by='gate'; valid"),
    'need of a value': ({'scores': rank, 'option_needs': {'by': {'probs': ('prob',)}}},
                        "the statistic 'prob'"),
    'cost without needs': ({'scores': rank, 'cost': Cost.PASS}, 'it reads no statistics'),
    'needs without cost': ({'scores': rank, 'needs': ('count',)}, "'weights only'.*it reads count"),
    'spread of a search': ({'choose': search, 'spread': 'mass'}, 'spread is for methods that rank'),
    'groups of a search': ({'choose': search, 'per_group': True}, 'per_group is for methods'),
    'replaced by a merge': ({'plan': search, 'kind': 'merge', 'replace': 'mean'},
                            'replace is for methods that drop experts'),
    'scope of experts': ({'scores': rank, 'scope': 'matrix'}, "scope='matrix'"),
    'no scope': (WEIGH | {'scope': None}, 'scope=None'),
    'scope of a solver': ({'kind': 'weights', 'solve': mask, 'scope': 'layer'}, 'every output'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_a_method_that_contradicts_itself_is_refused(case):
    fields, match = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=match):
        Method(**{**FIELDS, **fields})


def test_a_method_says_its_form_options_and_needs():
    method = Method(**FIELDS, scores=rank, option_needs={'by': {'probs': ('prob_sum',)}})
    assert method.form == 'scores' and method.function is rank
    assert method.options == {'by': 'gates', 'seed': 0} and method.reads(method.options) == ()
    assert method.reads({'by': 'probs', 'seed': 0}) == ('prob_sum',)


def test_needs_by_part():
    needs = {'up': ('moments', 'input_square'), 'down': ('moments', 'hidden_square')}
    method = Method(**FIELDS | {'cost': Cost.PASS} | WEIGH, needs=needs)
    assert method.reads(method.options) == ('moments', 'input_square', 'hidden_square')
    assert method.reads(method.options, ['down']) == ('moments', 'hidden_square')


def test_a_bound_of_an_option():
    assert checked_options('made_up', weigh, {'alpha': 2}) == {'alpha': 2.0}
    for value in (-1.0, float('nan'), float('inf')):
        with pytest.raises(ValueError, match=r'made_up: alpha=.*must be a number of 0 or more'):
            checked_options('made_up', weigh, {'alpha': value})


FILE = '''"""{name}: made up."""
from prune.inputs.method import Cost, Method
def scores(stats, params, cfg):
    """Ranks nothing."""
METHOD = Method(name='{name}', title='{name}', doc=__doc__, paper='none', kind='drop',
                cost=Cost.WEIGHTS, scores=scores{more})
'''


def test_a_file_in_the_package_is_enough(tmp_path, monkeypatch):
    folder = tmp_path / 'made_up_methods'
    folder.mkdir()
    (folder / '__init__.py').touch()
    for name, more in (('b', ''), ('a', ''), ('z', ', place=10'), ('y', ', place=20')):
        (folder / f'file_{name}.py').write_text(FILE.format(name=name, more=more))
    monkeypatch.syspath_prepend(tmp_path)
    assert list(discovered('made_up_methods', [str(folder)])) == ['z', 'y', 'a', 'b']
    (folder / 'twice.py').write_text(FILE.format(name='a', more=''))
    with pytest.raises(ValueError, match="two methods are called 'a'"):
        discovered('made_up_methods', [str(folder)])
    (folder / 'twice.py').write_text('')
    sys.modules.pop('made_up_methods.twice')
    with pytest.raises(TypeError, match=r'twice must end in METHOD = Method'):
        discovered('made_up_methods', [str(folder)])
    for name in [name for name in sys.modules if name.startswith('made_up_methods')]:
        del sys.modules[name]


def test_one_catalog_of_all_kinds():
    assert list(registry.ALL) == [*METHODS, *WEIGHT_METHODS]
    assert {m.kind for m in registry.ALL.values()} == set(FORMS)
    with pytest.raises(ValueError, match="two methods are called 'aimer'"):
        joined(METHODS, METHODS)
    with pytest.raises(ValueError, match="no method 'wandb'; did you mean 'wanda'"):
        registry.observe_options('wandb')
    with pytest.raises(ValueError, match="no method 'wanda'"):
        find(METHODS, 'wanda')


@pytest.mark.parametrize('name', [n for n, m in WEIGHT_METHODS.items() if m.needs])
def test_a_criterion_that_reads_statistics_reads_how_many_tokens_there_were(name):
    for leaf in ('gate', 'up', 'down'):
        method = WEIGHT_METHODS[name]
        assert TRAFFIC in method.reads(method.options, [leaf])
