"""Our decoder against transformers in torch, on every family and odd shape.

The tests with `expected` run without torch, on what `make_expected.py` recorded from it.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

import moe_jax
from moe_jax.base.tree import leaves_with_paths
from tests import matrix
from tests.moe_jax.hf import peer, tiny

EXPECTED = np.load(Path(__file__).with_name('expected.npz'))
REAL = tiny.MASK > 0
BF16 = [(family, next(iter(variants))) for family, variants in tiny.VARIANTS.items()]


def check(found, exact):
    """The same experts first: a near tie that flips one would explain any other difference."""
    (logits, chosen), (exact_logits, exact_chosen) = found, exact
    real = REAL.ravel()
    np.testing.assert_array_equal(chosen[:, real], np.asarray(exact_chosen)[:, real])
    np.testing.assert_allclose(logits[REAL], exact_logits[REAL], rtol=0, atol=1e-5)


@pytest.mark.parametrize(('family', 'variant'), matrix.rows(tiny.CASES, tiny.FIRST))
def test_logits_and_experts_by_the_record(family, variant, ours):
    name = f'{family}/{variant}/'
    check(ours(family, variant), (EXPECTED[name + 'logits'], EXPECTED[name + 'chosen']))


@pytest.mark.parametrize(('family', 'variant'), matrix.rows(tiny.CASES, tiny.FIRST))
def test_logits_and_experts_by_torch(family, variant, ours, folder_of):
    pytest.importorskip('torch')
    logits, chosen = peer.logits(folder_of(family, variant), mask=tiny.MASK)
    check(ours(family, variant), (logits, np.sort(chosen, axis=-1)))
    alone, _ = peer.logits(folder_of(family, variant), tokens=tiny.TOKENS[:1])
    np.testing.assert_allclose(ours(family, variant)[0][:1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(('family', 'variant'), matrix.rows(tiny.CASES, tiny.FIRST))
def test_what_transformers_saves_loads_bit_for_bit(family, variant, folder_of, loaded, tmp_path):
    pytest.importorskip('torch')
    peer.open_model(folder_of(family, variant)).save_pretrained(tmp_path)
    cfg, params = moe_jax.load(tmp_path)
    same_cfg, same = loaded(family, variant)
    assert cfg == same_cfg
    jax.tree.map(np.testing.assert_array_equal, params, same)


@pytest.mark.parametrize(('family', 'variant'), matrix.rows(BF16, BF16[:2]))
def test_bfloat16_stays_as_near_to_float32_as_torch_does(family, variant, folder_of, ours):
    """By KL from the float32 distribution of the same weights, and by the likeliest token.

    The weights are rounded once for all three, so what differs is the arithmetic. A near tie
    between experts that rounding flips, on either side, is a jump of one token: hence the median.
    """
    pytest.importorskip('torch')
    folder = folder_of(family, variant, dtype='bfloat16')
    cfg, params = moe_jax.load(folder)
    assert cfg.dtype == 'bfloat16'
    tokens = tiny.TOKENS.astype(np.int32)
    found = moe_jax.apply(cfg, params, tokens)
    exact, _ = peer.logits(folder, dtype='float32')
    rival, _ = peer.logits(folder)
    assert np.median(kl(exact, found)) < 2 * np.median(kl(exact, rival)) + 2e-6
    assert (kl(exact, found) > 1e-2).mean() <= (kl(exact, rival) > 1e-2).mean() + 0.05
    agree = (np.argmax(found, -1) == np.argmax(exact, -1)).mean()
    assert agree >= (np.argmax(rival, -1) == np.argmax(exact, -1)).mean() - 0.1


def kl(exact, found):
    """KL from softmax(exact) to softmax(found) of each token."""
    p, q = (np.asarray(jax.nn.log_softmax(np.asarray(z, np.float32), axis=-1))
            for z in (exact, found))
    return (np.exp(p) * (p - q)).sum(axis=-1)


def test_all_leaves_of_all_families_have_been_random(loaded):
    """A leaf of zeros or ones would hide that it is not used."""
    for family, variant in tiny.CASES:
        for path, leaf in leaves_with_paths(loaded(family, variant)[1]):
            assert np.asarray(leaf).std() > 0.05, f'{family} {variant} {path}'
