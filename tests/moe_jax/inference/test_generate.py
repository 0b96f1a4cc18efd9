import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.config import Config, Latent, Rope
from moe_jax.inference.generate import Sampling, _choose, generate
from moe_jax.model import decoder
from tests.matrix import rows

FORMS = {
    'learned positions': {},
    'rotary, grouped, window': {
        'kv_heads': 1, 'rope': Rope(dim=4), 'norm': 'rms', 'ffn': 'swiglu',
        'windows': (3, 0), 'sinks': True, 'tied': False},
    'latent': {
        'head_dim': 5, 'rope': Rope(dim=2), 'latent': Latent(kv=3, plain=3, rotary=2, value=4)},
}
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6]]
APPLY = jax.jit(decoder.apply, static_argnums=0)
FORWARD = jax.jit(decoder.forward, static_argnums=0)


@pytest.fixture(scope='module', params=rows(FORMS, quick=['rotary, grouped, window', 'latent']))
def form(request, cfg, draw):
    cfg: Config = cfg.replace(positions=24, experts=(4, 0), **FORMS[request.param])
    return cfg, draw(cfg)


@pytest.fixture(scope='module')
def small(cfg, draw):
    """A layer alone, where the law is one of rows and not of models."""
    cfg = cfg.replace(experts=(4,))
    return cfg, draw(cfg)


def greedy_by_recomputing(cfg, params, prompt, count, stop=()):
    """No cache: the whole row again for every token."""
    row = list(prompt)
    for _ in range(count):
        tokens = np.zeros((1, cfg.positions), np.int32)
        tokens[0, :len(row)] = row
        segments = (np.arange(cfg.positions) < len(row))[None].astype(np.int32)
        token = int(np.argmax(APPLY(cfg, params, tokens, segments)[0, len(row) - 1]))
        if token in stop:
            break
        row.append(token)
    return row[len(prompt):]


def test_greedy_equals_recomputing_the_whole_row(form):
    cfg, params = form
    found = generate(cfg, params, PROMPTS, max_new=8)
    assert found == [greedy_by_recomputing(cfg, params, p, 8) for p in PROMPTS]


def test_a_row_does_not_depend_on_the_others(form):
    cfg, params = form
    together = generate(cfg, params, PROMPTS, max_new=8)
    assert together[1] == generate(cfg, params, PROMPTS[1:2], max_new=8)[0]


def test_logits_with_a_cache_equal_those_without(form):
    """Prefilled in two parts and then token by token, padded on the left."""
    cfg, params = form
    tokens = np.random.default_rng(0).integers(0, cfg.vocab, (2, 9)).astype(np.int32)
    segments = np.array([[1] * 9, [0] * 3 + [1] * 6], np.int32)
    exact = APPLY(cfg, params, tokens, segments)
    cache = decoder.empty_cache(cfg, 2, 12)
    for first, last in ((0, 4), (4, 8), (8, 9)):
        part, out = FORWARD(cfg, params, tokens[:, first:last], segments[:, first:last],
                                  cache=cache)
        cache, real = out['cache'], segments[:, first:last] > 0
        np.testing.assert_allclose(np.asarray(part)[real],
                                   np.asarray(exact[:, first:last])[real], rtol=1e-4, atol=1e-4)
    assert int(cache['length']) == 9


def test_stop_tokens_end_a_row_and_are_left_out(form):
    cfg, params = form
    stop = {generate(cfg, params, PROMPTS, max_new=8)[0][2]}
    exact = [greedy_by_recomputing(cfg, params, p, 8, stop) for p in PROMPTS]
    assert generate(cfg, params, PROMPTS, max_new=8, stop=stop) == exact
    assert len(exact[0]) <= 2


def test_the_hosts_rule_ends_a_row(small, monkeypatch):
    cfg, params = small
    monkeypatch.setattr(sys.modules['moe_jax.inference.generate'], 'CHUNK', 2)
    free = generate(cfg, params, [[1], [2]], max_new=8)
    found = generate(cfg, params, [[1], [2]], max_new=8,
                     stop_when=lambda row: row[0] == free[0][0] and len(row) >= 3)
    assert found[0] == free[0][:4]
    assert found[1] == (free[1] if free[1][0] != free[0][0] else free[1][:4])


def test_sampling_follows_the_probabilities():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    draws = jnp.tile(logits, (4000, 1))
    keys = jax.random.split(jax.random.key(0), 4000)

    def shares(**fields):
        tokens = _choose(Sampling(**fields), draws, keys)
        return np.bincount(tokens, minlength=4) / 4000

    np.testing.assert_allclose(shares(temperature=1.0), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    np.testing.assert_allclose(shares(temperature=1.0, top_k=2), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(temperature=1.0, top_p=0.79), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(temperature=1.0, top_p=0.81), [0.526, 0.316, 0.158, 0],
                               atol=0.03)
    cold = np.exp(2 * np.asarray(logits))
    np.testing.assert_allclose(shares(temperature=0.5), cold / cold.sum(), atol=0.03)
    np.testing.assert_array_equal(shares(), [1, 0, 0, 0])


def test_a_sample_does_not_depend_on_the_other_rows(small):
    cfg, params = small
    warm, key = Sampling(temperature=1.0, top_p=0.9), jax.random.key(3)
    together = generate(cfg, params, [[1, 2], [1, 2]], max_new=6, sampling=warm, key=key)
    alone = generate(cfg, params, [[1, 2]], max_new=6, sampling=warm, key=key)
    assert together[0] == alone[0] and together[0] != together[1]


@pytest.mark.parametrize(('options', 'message'), [
    ({'prompts': [[]]}, 'at least one token'),
    ({'prompts': []}, 'at least one token'),
    ({'max_new': 0}, 'at least one token'),
    ({'max_new': 8, 'prompts': [[1, 2, 3]]}, '10 positions'),
    ({'prompts': [[99]]}, 'do not fit vocab'),
    ({'sampling': Sampling(temperature=1.0)}, 'needs key'),
])
def test_bad_requests_are_refused(cfg, params, options, message):
    with pytest.raises(ValueError, match=message):
        generate(cfg, params, **{'prompts': [[1]], 'max_new': 2, **options})


@pytest.mark.parametrize('fields', [
    {'temperature': -1.0}, {'temperature': float('nan')}, {'top_k': -1}, {'top_p': 0.0}])
def test_bad_sampling_is_refused(fields):
    with pytest.raises(ValueError, match=r'must be|give'):
        Sampling(**fields)
