"""How many weights go, and which among equals: against a stable sort of all of them."""

import numpy as np
import pytest

from prune.plans.masks import pack, unpack
from prune.weights import cut

RNG = np.random.default_rng(0)
SCORES = {
    'distinct': RNG.random((3, 8, 5), np.float32),
    'few values': RNG.integers(0, 3, (3, 8, 5)).astype(np.float32),
    'all equal': np.ones((3, 8, 5), np.float32),
    'zeros and tiny': np.float32(2.0)**-RNG.integers(100, 149, (3, 8, 5)) * RNG.integers(0, 2, 120)
    .reshape(3, 8, 5).astype(np.float32),
}


def without_lowest(flat, count):
    """Mask of a flat array without its `count` lowest, by a stable sort."""
    mask = np.ones(len(flat), bool)
    mask[np.argsort(flat, kind='stable')[:count]] = False
    return mask


@pytest.mark.parametrize('sparsity', [0.0, 0.29, 0.5, 0.99])
@pytest.mark.parametrize('name', SCORES)
def test_every_scope_against_a_stable_sort(name, sparsity):
    scores = SCORES[name]
    output, matrix = cut.per_output(scores, sparsity), cut.per_matrix(scores, sparsity)
    for e in range(3):
        whole = without_lowest(scores[e].ravel(), int(sparsity * 40 + 1e-9))
        np.testing.assert_array_equal(matrix[e], whole.reshape(8, 5))
        for o in range(5):
            np.testing.assert_array_equal(
                output[e, :, o], without_lowest(scores[e, :, o], int(sparsity * 8)))


@pytest.mark.parametrize('sparsity', [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize('name', SCORES)
def test_pooled_parts_are_one_long_array(name, sparsity, monkeypatch):
    monkeypatch.setattr(cut, 'CHUNK', 7)
    parts = [('first', SCORES[name]), ('second', SCORES[name][:2, :4]),
             ('third', SCORES['few values'])]
    found = cut.pooled(lambda: iter(parts), sparsity)
    flat = np.concatenate([s.ravel() for _, s in parts])
    want = without_lowest(flat, int(sparsity * len(flat) + 1e-9))
    got = np.concatenate([unpack(found[n], s.shape[1:]).ravel() for n, s in parts])
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('pattern', [(2, 4), (1, 4), (3, 4), (4, 8), (1, 2)])
@pytest.mark.parametrize('name', SCORES)
def test_a_pattern_keeps_the_best_of_each_group_of_inputs(name, pattern):
    scores, (n, m) = SCORES[name], pattern
    mask = cut.per_pattern(scores, pattern)
    for e in range(3):
        for o in range(5):
            for start in range(0, 8, m):
                np.testing.assert_array_equal(
                    mask[e, start:start + m, o],
                    without_lowest(scores[e, start:start + m, o], m - n))


def test_shares_are_what_was_written():
    assert cut.share(0.29, 100) == 29 and cut.share(0.5, 7) == 3 and cut.share(0.999999, 10) == 9


@pytest.mark.parametrize('shape', [(3, 5), (8, 8), (1, 1), (7, 9)])
def test_bits_come_back_and_take_an_eighth(shape):
    mask = np.random.default_rng(1).random((4, *shape)) < 0.5
    packed = pack(mask)
    assert packed.dtype == np.uint8 and packed.shape == (4, -(-shape[0] * shape[1] // 8))
    np.testing.assert_array_equal(unpack(packed, shape), mask)
