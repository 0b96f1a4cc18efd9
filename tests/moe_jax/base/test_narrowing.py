"""Casts to narrower dtypes, held against numpy's and ml_dtypes' own rounding."""

import logging

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from moe_jax.base import narrowing
from moe_jax.base.narrowing import Casts, narrows

KINDS = {name: np.dtype(getattr(ml_dtypes, name, name))
         for name in ('float64', 'float32', 'bfloat16', 'float16')}
PAIRS = [(a, b) for a in KINDS for b in KINDS if a != b]


def edges(source, target):
    """Numbers of a dtype at and around the ends of another, of both signs, and ordinary ones."""
    kind = ml_dtypes.finfo(KINDS[target])
    around = 1 + np.array([-1e-3, -1e-6, 0, 1e-6, 2e-4, 4e-4, 1e-3, 2e-3, 0.1, 1])
    low = float(kind.smallest_subnormal) * np.array([0.1, 0.49, 0.5, 0.51, 1, 2])
    plain = np.random.default_rng(0).standard_normal(50)
    with np.errstate(over='ignore', under='ignore'):
        values = np.concatenate([float(kind.max) * around, low, plain, [0.0, float(kind.max)]])
        values = np.concatenate([values, -values]).astype(KINDS[source])
    return values[np.isfinite(values)]


@pytest.mark.parametrize(('source', 'target'), PAIRS)
def test_each_number_alone_is_judged_as_it_rounds(source, target):
    for value in edges(source, target):
        with np.errstate(over='ignore', under='ignore'):
            exact = np.array([value]).astype(KINDS[target])
        casts, out = Casts('here'), np.empty(1, KINDS[target])
        if not np.isfinite(exact[0]):
            with pytest.raises(ValueError, match=f'1 finite values beyond {target}'):
                casts.put('leaf', np.array([value]), out)
            continue
        casts.put('leaf', np.array([value]), out)
        assert out.tobytes() == exact.tobytes()
        assert sum(casts.zeros.values()) == (value != 0 and exact[0] == 0)


@pytest.mark.parametrize(('source', 'target'), PAIRS)
def test_what_narrows_is_what_an_extreme_number_shows(source, target):
    kind = ml_dtypes.finfo(KINDS[source])
    with np.errstate(over='ignore', under='ignore'):
        ends = np.array([kind.max, kind.smallest_subnormal], KINDS[source]).astype(KINDS[target])
    assert narrows(KINDS[source], KINDS[target]) == bool(np.isinf(ends[0]) or ends[1] == 0)


def test_the_message_has_name_count_largest_and_remedy():
    values = np.array([1.0, 1e5, -3e5, np.inf, np.nan, 65504], 'float32')
    with pytest.raises(ValueError) as told:
        Casts('FOLDER').put('up', values, np.empty(6, 'float16'))
    assert str(told.value) == (
        'FOLDER: up has 2 finite values beyond float16, which ends at 65504; the largest is 3e+05. '
        'Cast to bfloat16 or float32 instead')
    with pytest.raises(ValueError) as again:
        Casts('FOLDER').cast('up', jnp.asarray(values), 'float16')
    assert str(again.value) == str(told.value)


@pytest.mark.parametrize('shape', [(), (0,), (7,), (5, 11), (11, 5), (3, 4, 5), (40, 1), (1, 40)])
@pytest.mark.parametrize('block', [1, 16, 1 << 18])
@pytest.mark.parametrize('swapped', [False, True])
def test_every_number_of_every_shape_is_looked_at_once(shape, block, swapped, monkeypatch):
    monkeypatch.setattr(narrowing, 'BLOCK', block)
    rng = np.random.default_rng(0)
    values = rng.choice(np.array([1.0, 1e5, -1e6, 1e-9, 0.0], 'float32'), shape)
    if swapped and values.ndim > 1:
        values = np.swapaxes(values, -1, -2)
    lost = narrowing._lost_by_blocks(values, *narrowing._ends(np.float16))
    sizes = np.abs(values)
    assert lost == ((sizes > 1e4).sum(), sizes.max(initial=0), (sizes == np.float32(1e-9)).sum())


def test_infinities_of_the_source_stay_what_they_are():
    values = np.array([1.0, -np.inf, np.inf], 'float32')
    out = np.empty(3, 'float16')
    Casts('here').put('up', values, out)
    np.testing.assert_array_equal(out, values)
    np.testing.assert_array_equal(Casts('here').cast('up', jnp.asarray(values), 'float16'), values)


def test_new_zeros_are_told_once_for_each_part(caplog):
    casts, values = Casts('here'), np.array([1e-9, 1.0, 0.0, -1e-8], 'float32')
    for part in ('first', 'first', 'second'):  # a device more copies a part that is counted already
        casts.put('up', values, np.empty(4, 'float16'), part)
    casts.cast('down', jnp.asarray(values), 'float16')
    with caplog.at_level(logging.INFO, 'moe_jax'):
        casts.tell()
    assert caplog.messages == [
        'here: 6 values of 2 tensors are too small for float16 and became zero: up; down']
