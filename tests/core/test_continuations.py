import jax
import numpy as np
import pytest

from moe_jax import model
from moe_jax.continuations import lengths, score_continuations
from moe_jax.score import score

APPLY = jax.jit(model.apply, static_argnums=0)


@pytest.fixture(scope='module')
def plain(cfg, draw):
    """One layer of the tiny model, with room for 40 tokens."""
    cfg = cfg.replace(positions=40, experts=(4,))
    return cfg, draw(cfg)


def requests(seed=0, count=13):
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 23, rng.integers(1, 32)).tolist(),
             rng.integers(0, 23, rng.choice([3, 7])).tolist()) for _ in range(count)]


def by_logits(cfg, params, context, answer):
    """Log-softmax of the full logits of the row alone, in numpy."""
    row = [*context, *answer][-(cfg.positions + 1):]
    tokens, read = np.zeros((1, cfg.positions), np.int32), len(row) - 1
    tokens[0, :read] = row[:-1]
    z = np.asarray(APPLY(cfg, params, tokens)[0], np.float64)[read - len(answer):read]
    log_probs = z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)) - z.max(
        -1, keepdims=True)
    return log_probs[np.arange(len(answer)), answer].sum(), bool((z.argmax(-1) == answer).all())


@pytest.mark.parametrize('batch', [1, 3, 8])
def test_sums_by_full_logits_whatever_the_batch(plain, batch):
    asked = requests()
    found = score_continuations(*plain, asked, batch=batch)
    exact = [by_logits(*plain, *request) for request in asked]
    np.testing.assert_allclose(found.log_prob, [e[0] for e in exact], rtol=1e-4, atol=1e-4)
    assert found.greedy.tolist() == [e[1] for e in exact]


def test_the_models_own_choice_is_greedy(plain):
    cfg, params = plain
    context = [3, 1, 4]
    tokens = np.array([context + [0] * 37], np.int32)
    best = int(np.argmax(APPLY(cfg, params, tokens)[0, 2]))
    found = score_continuations(cfg, params, [(context, [best]), (context, [(best + 1) % 23])])
    assert found.greedy.tolist() == [True, False]


def test_long_contexts_lose_their_beginning(plain):
    cfg, params = plain
    rng = np.random.default_rng(1)
    long, answer = rng.integers(0, 23, 90).tolist(), [5, 6, 7]
    found = score_continuations(cfg, params, [(long, answer)])
    exact = by_logits(cfg, params, long, answer)
    np.testing.assert_allclose(found.log_prob, [exact[0]], rtol=1e-4, atol=1e-4)
    whole = rng.integers(0, 23, 40).tolist()  # as long as the model's rows
    exact = by_logits(cfg, params, [1], whole)
    np.testing.assert_allclose(score_continuations(cfg, params, [([1], whole)]).log_prob,
                               [exact[0]], rtol=1e-4, atol=1e-4)


def test_they_agree_with_score(plain):
    cfg, params = plain
    row = np.random.default_rng(2).integers(0, 23, 20)
    found = score_continuations(cfg, params, [(row[:12].tolist(), row[12:].tolist())])
    np.testing.assert_allclose(found.log_prob[0], score(cfg, params, row[None])[0, 11:].sum(),
                               rtol=1e-4)


def test_few_lengths_and_little_padding():
    assert lengths(100) == [32, 48, 64, 96, 100]
    assert lengths(10) == [10]
    sizes = np.array(lengths(4096))
    assert len(sizes) < 16 and (sizes[1:] / sizes[:-1] <= 1.5).all()


@pytest.mark.parametrize(('asked', 'message'), [
    (([], [1]), 'request 0: context and continuation'),
    (([1], []), 'request 0: context and continuation'),
    (([1], [1] * 41), '41 tokens'),
    (([99], [1]), 'do not fit vocab'),
    (([1], [99]), 'do not fit vocab'),
])
def test_bad_requests_are_refused(plain, asked, message):
    with pytest.raises(ValueError, match=message):
        score_continuations(*plain, [asked])


def test_progress_counts_requests(plain):
    done = []
    score_continuations(*plain, requests(count=9), batch=2, progress=done.append)
    assert sum(done) == 9
