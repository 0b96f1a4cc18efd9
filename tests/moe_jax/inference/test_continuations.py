import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from moe_jax.config import Latent, Rope, Skip
from moe_jax.inference import continuations
from moe_jax.inference.continuations import lengths, rounded, score_continuations
from moe_jax.inference.score import score
from moe_jax.model import decoder
from tests.matrix import rows

APPLY = jax.jit(decoder.apply, static_argnums=0)


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
    assert [rounded(n) for n in range(1, 14)] == [1, 2, 3, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16]


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
    score_continuations(*plain, requests(), batch=3, progress=done.append)
    assert sum(done) == 13 and len(done) > 1


KINDS = {
    'learned positions, GELU': {'experts': (4,)},
    'rotary, grouped queries, window': {
        'experts': (4, 0), 'heads': 4, 'kv_heads': 2, 'head_dim': 6, 'windows': (5, 0),
        'rope': Rope(dim=4), 'norm': 'rms', 'ffn': 'swiglu', 'tied': False, 'qkv_bias': False},
    'sinks, window': {
        'experts': (0, 4), 'head_dim': 4, 'windows': (0, 3), 'sinks': True, 'rope': Rope(dim=4),
        'norm': 'rms', 'ffn': 'swiglu_clamped', 'gate': 'topk_softmax', 'router_bias': True},
    'latent': {
        'experts': (4,), 'latent': Latent(kv=6, plain=4, rotary=2, value=5, query=4),
        'rope': Rope(dim=2, interleaved=True), 'norm': 'rms', 'gate': 'sigmoid_topk',
        'correction': True},
}


def questions(seed=0, vocab=23):
    """Requests that share much, in no order: options of questions, contexts that differ in a word
    and end alike, one that begins another, twice the same, single tokens, one that is too long."""
    rng = np.random.default_rng(seed)

    def draw(size):
        return rng.integers(0, vocab, size).tolist()

    asked = []
    for size in (12, 20, 33):
        context = draw(size)
        asked += [(context, draw(rng.integers(1, 6))) for _ in range(3)]
    shared, ending = draw(14), draw(5)
    asked += [(shared + draw(2), ending) for _ in range(3)]
    asked += [(shared, ending), (shared, ending[:1]), (shared + ending, [3]), (shared, ending)]
    asked += [(asked[0][0], [token]) for token in (1, 2)]
    long = draw(60)
    asked += [(long, draw(3)), (long, draw(2)), (draw(1), draw(1))]
    return [asked[i] for i in rng.permutation(len(asked))]


@pytest.fixture(scope='module', params=rows(KINDS, quick=['latent', 'sinks, window']))
def kind(request, cfg, draw):
    """A tiny model of each kind of attention, with room for 40 tokens."""
    cfg = cfg.replace(positions=40, **KINDS[request.param])
    return cfg, draw(cfg)


def test_branches_say_what_every_request_alone_says(kind):
    asked = questions()
    exact = [by_logits(*kind, *request) for request in asked]
    found = score_continuations(*kind, asked, batch=2)
    np.testing.assert_allclose(found.log_prob, [e[0] for e in exact], rtol=1e-5, atol=1e-5)
    assert found.greedy.tolist() == [e[1] for e in exact]


def test_the_order_of_requests_does_not_matter(plain):
    asked = questions()
    order = np.random.default_rng(5).permutation(len(asked))
    found, mixed = (score_continuations(*plain, part)
                    for part in (asked, [asked[i] for i in order]))
    np.testing.assert_array_equal(found.log_prob[order], mixed.log_prob)
    np.testing.assert_array_equal(found.greedy[order], mixed.greedy)


def recorded(monkeypatch, run=None):
    """Of every batch from now on: the shapes of tokens and places, and how many tokens are read.

    Nothing is computed but what `run` does.
    """
    seen = []

    def recording(cfg):
        def record(params, tokens, segments, branches, places, targets):
            seen.append((tokens.shape, places.shape, int((segments > 0).sum())))
            given = params, tokens, segments, branches, places, targets
            return (targets, targets > 0) if run is None else run(cfg)(*given)

        return record

    monkeypatch.setattr(continuations, '_scorer', recording)
    return seen


def test_what_is_common_is_computed_once(plain, monkeypatch):
    seen = recorded(monkeypatch)
    context = list(range(20))
    score_continuations(*plain, [(context, [3, 4, 5])])
    assert seen == [((1, 32), (1, 3), 22)]
    score_continuations(*plain, [(context, [3, 4, 5])] * 7)
    assert seen[1][2] == 22
    score_continuations(*plain, [(context, [token]) for token in range(6)])
    assert seen[2][2] == 20
    score_continuations(*plain, [(context, [token, 7, 8]) for token in range(4)])
    assert seen[3][2] == 20 + 4 * 2


def test_few_shapes_whatever_is_asked(plain, monkeypatch):
    seen = recorded(monkeypatch)
    rng = np.random.default_rng(7)
    asked = []
    for _ in range(60):
        context = rng.integers(0, 23, rng.integers(1, 38)).tolist()
        asked += [(context, rng.integers(0, 23, rng.integers(1, 4)).tolist()) for _ in range(4)]
    score_continuations(*plain, asked, batch=4)
    assert len(seen) > 8 and len({(tokens, places) for tokens, places, _ in seen}) <= 2
    used, there = (sum(x) for x in zip(*((n, np.prod(t)) for t, _, n in seen), strict=True))
    assert used > 0.8 * there  # little padding


def test_where_tokens_of_a_row_compete_each_request_has_its_own(plain, monkeypatch):
    """Which tokens are protected from skipping depends on the whole row."""
    cfg, params = plain
    cfg = cfg.replace(skip=Skip(kind='ratio', thresholds=((0.9,),), protect=0.3))
    asked = questions(seed=4)[:6]
    seen = recorded(monkeypatch, continuations._scorer)
    found = score_continuations(cfg, params, asked)
    assert sum(n for *_, n in seen) == sum(
        len(set_of) for set_of in {tuple([*c, *a][-41:-1]) for c, a in asked})
    for (context, answer), value in zip(asked, found.log_prob, strict=True):
        row = [*context, *answer][-41:]
        tokens, segments = np.zeros((2, 1, 40), np.int32)
        tokens[0, :len(row) - 1], segments[0, :len(row) - 1] = row[:-1], 1
        z = log_softmax(np.asarray(APPLY(cfg, params, tokens, segments)[0], np.float64), axis=-1)
        exact = z[np.arange(len(row) - 1 - len(answer), len(row) - 1), answer].sum()
        np.testing.assert_allclose(value, exact, rtol=1e-5, atol=1e-5)


def test_nothing_asked_is_nothing_found(plain):
    found = score_continuations(*plain, [])
    assert found.log_prob.shape == found.greedy.shape == (0,)


def test_branches_are_refused_with_a_cache_and_in_other_shapes(plain):
    cfg, params = plain
    tokens = np.zeros((1, 4), np.int32)
    with pytest.raises(ValueError, match='branches with a cache'):
        decoder.hidden(cfg, params, tokens, branches=tokens, cache=decoder.empty_cache(cfg, 1, 8))
    with pytest.raises(ValueError, match=r'branches \(1, 3\) must be \[B, T\]'):
        decoder.hidden(cfg, params, tokens, branches=tokens[:, :3])
