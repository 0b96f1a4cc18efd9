"""Checks of single values: what passes, what is refused, and what the refusal says."""

import numpy as np
import pytest

from moe_jax.base import checks


@pytest.mark.parametrize('value', [3, np.int64(3), np.uint8(3)])
def test_a_whole_number_of_any_type_becomes_an_int(value):
    found = checks.integer('x', value, 1, 4)
    assert type(found) is int and found == 3


@pytest.mark.parametrize('value', [True, np.True_, 3.0, '3', None, 0, 4, [3]])
def test_what_is_no_integer_in_the_range_is_refused(value):
    with pytest.raises(ValueError, match=r'^run a: x=.*: must be an integer, at least 1 and below 4'
                       ) as refused:
        checks.integer('run a: x', value, 1, 4)
    assert repr(value) in str(refused.value)


def test_bounds_that_are_not_given_are_not_told():
    assert checks.integer('x', -5, None) == -5
    with pytest.raises(ValueError, match=r'an integer$'):
        checks.integer('x', 'a', None)


@pytest.mark.parametrize('value', [2, 2.0, np.float32(2), np.int8(2)])
def test_a_number_of_any_type_becomes_a_float(value):
    found = checks.number('x', value, 1, most=2)
    assert type(found) is float and found == 2


@pytest.mark.parametrize('value', [True, '1', None, float('nan'), float('inf'), 10**400, -1, 1])
def test_what_is_no_number_in_the_range_is_refused(value):
    with pytest.raises(ValueError, match=r'^x=.*: must be a finite number in \[0, 1\)'):
        checks.number('x', value, 0, 1)


def test_bounds_may_be_open_below_and_closed_above():
    assert checks.number('x', 1, above=0, most=1) == 1
    for value in (0, 1.5):
        with pytest.raises(ValueError, match=r'a finite number in \(0, 1\]'):
            checks.number('x', value, above=0, most=1)


def test_a_choice_names_the_nearest():
    assert checks.choice('x', 'cosine', ('cosine', 'linear')) == 'cosine'
    with pytest.raises(ValueError, match=r"^x='cosin'; did you mean 'cosine'\? valid: cosine, lin"):
        checks.choice('x', 'cosin', {'cosine': 1, 'linear': 2})
    for value in (None, 1, ['cosine'], np.zeros(2)):
        with pytest.raises(ValueError, match='valid: cosine, linear'):
            checks.choice('x', value, ('cosine', 'linear'))
