import sys

import numpy as np
import pytest
from scipy.special import log_softmax

from moe_jax import score
from moe_jax.inference.score import target_log_probs
from moe_jax.model import decoder


@pytest.fixture(scope='module')
def logits(cfg, params, run, rows):
    return np.asarray(run(cfg, params, *rows)[0], np.float64)


def test_by_log_softmax(cfg, params, rows, logits):
    tokens, segments = rows
    found = score(cfg, params, tokens, segments)
    assert found.shape == (2, 8) and found.dtype == np.float32
    exact = log_softmax(logits, axis=-1)
    for b, t in np.ndindex(2, 8):
        past = segments[b, t + 1] > 0 and segments[b, t + 1] == segments[b, t]
        assert float(found[b, t]) == pytest.approx(
            exact[b, t, tokens[b, t + 1]] if past else 0.0, abs=1e-4)


def test_without_a_mask_every_token_counts(cfg, params, run, rows):
    tokens = rows[0]
    exact = log_softmax(np.asarray(run(cfg, params, tokens, np.ones_like(tokens))[0]), axis=-1)
    exact = np.take_along_axis(exact[:, :-1], tokens[:, 1:, None], axis=-1)[:, :, 0]
    np.testing.assert_allclose(score(cfg, params, tokens), exact, rtol=1e-4, atol=1e-4)


def test_a_mask_is_segments_of_zero_and_one(cfg, params, rows):
    mask = np.arange(9)[None] < np.array([[7], [4]])
    found = score(cfg, params, rows[0], mask)
    np.testing.assert_array_equal(found, score(cfg, params, rows[0], mask.astype(np.int32)))
    np.testing.assert_array_equal(found[0, 6:], [0, 0])
    np.testing.assert_array_equal(found[1, 3:], [0] * 5)
    assert (np.asarray(found)[:, :3] < 0).all()


def test_ids_under_padding_do_not_matter(cfg, params, rows):
    tokens, segments = rows
    marked = np.where(segments > 0, tokens, -100)
    np.testing.assert_array_equal(
        score(cfg, params, marked, segments), score(cfg, params, tokens, segments))


def test_probabilities_of_all_next_tokens_sum_to_one(cfg, params):
    rows = np.stack([np.array([3, token]) for token in range(cfg.vocab)])
    total = np.exp(np.asarray(score(cfg, params, rows), np.float64)).sum()
    assert total == pytest.approx(1.0, rel=1e-5)


def test_uniform_logits_give_log_vocab(cfg, params, rows):
    flat = {**params, 'norm_final': {'scale': np.zeros(8, np.float32),
                                     'bias': np.zeros(8, np.float32)}}
    np.testing.assert_allclose(score(cfg, flat, rows[0]), np.full((2, 8), -np.log(23)), rtol=1e-6)


def test_a_single_token_has_no_score(cfg, params):
    assert score(cfg, params, np.zeros((3, 1), int)).shape == (3, 0)


@pytest.mark.parametrize(('tokens', 'mask', 'message'), [
    (np.full((1, 3), 23), None, 'do not fit vocab=23'),
    (np.zeros((1, 11), int), None, '11 tokens in a row'),
    (np.zeros(3, int), None, r'must both be \[B, T\]'),
    (np.zeros((1, 3), int), np.ones((1, 2), bool), r'must both be \[B, T\]'),
])
def test_tokens_that_do_not_fit_are_refused(cfg, params, tokens, mask, message):
    with pytest.raises(ValueError, match=f'score: .*{message}'):
        score(cfg, params, tokens, mask)


def test_params_are_not_touched(cfg, params, rows):
    before = decoder.shapes(cfg)
    score(cfg, params, *rows)
    assert str(before) == str(decoder.shapes(cfg))


@pytest.mark.parametrize('rows', [1, 5, 7, 18])
def test_blocks_of_positions_change_nothing(cfg, params, rows, monkeypatch):
    """Blocks that divide the 18 positions, that do not, and one that holds them all."""
    cfg = cfg.replace(experts=(0,))
    params = {name: params[key] for name, key in (
        ('embed', 'embed'), ('layer_0', 'layer_1'), ('norm_final', 'norm_final'))}
    tokens = np.random.default_rng(0).integers(0, 23, (2, 9)).astype(np.int32)
    x, _ = decoder.hidden(cfg, params, tokens)
    monkeypatch.setattr(sys.modules['moe_jax.inference.score'], 'BLOCK', rows * cfg.vocab)
    log_probs, greedy = target_log_probs(cfg, params, x, tokens)
    exact = log_softmax(np.asarray(decoder.unembed(cfg, params, x), np.float64), axis=-1)
    np.testing.assert_allclose(
        log_probs, np.take_along_axis(exact, tokens[..., None], axis=-1)[..., 0], rtol=1e-4,
        atol=1e-5)
    np.testing.assert_array_equal(greedy, exact.argmax(axis=-1) == tokens)
