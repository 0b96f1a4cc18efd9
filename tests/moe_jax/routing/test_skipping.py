"""Dynamic execution: which experts a token really uses, by loops and in the model."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import Config
from moe_jax.config import Skip
from moe_jax.inference.generate import generate
from moe_jax.routing import skipping
from moe_jax.routing.designs.top_k import choose
from moe_jax.routing.gates import GATE

LOGITS = jnp.asarray(2 * np.random.default_rng(0).normal(size=(40, 6)), jnp.float32)


@pytest.fixture(scope='module')
def cfg(cfg):
    """One layer that skips, behind a dense one."""
    return cfg.replace(experts=(0, 4))


@pytest.fixture(scope='module')
def params(cfg, draw):
    return draw(cfg)


@pytest.mark.parametrize('gate', ['softmax_topk', 'softmax_topk_renorm', 'sigmoid_topk_renorm'])
def test_ratio_by_loops(gate):
    found = choose(LOGITS, topk=3, gate=gate, scale=2.5)
    skip = Skip(kind='ratio', thresholds=((0.6, 0.4),))
    after, used = skipping.apply(found, skip, 0, renormalized=GATE[gate].renormalized)
    some = 0
    for n in range(40):
        g = np.asarray(found.gates[n], np.float64)
        wanted = [k == 0 or g[k] >= (0.6, 0.4)[k - 1] * g.max() for k in range(3)]
        assert used[n].tolist() == wanted
        some += sum(wanted)
        left = np.where(wanted, g, 0)
        if gate != 'softmax_topk':
            left *= g.sum() / left.sum()
        np.testing.assert_allclose(after.gates[n], left, rtol=1e-5)
    assert 40 < some < 120


def test_top_p_by_loops():
    found = choose(LOGITS, topk=4, gate='softmax_topk')
    for p in (0.0, 0.3, 0.8, 1.0):
        used = skipping.RULES['top_p'](found, (p,))
        for n in range(40):
            probs = np.sort(np.asarray(found.probs[n], np.float64))[::-1]
            count = next((i + 1 for i in range(4) if probs[:i + 1].sum() > p), 4)
            assert used[n].tolist() == [k < count for k in range(4)]


def test_protected_tokens_by_hand():
    importance = jnp.asarray([[1, 9, 3, 9, 2, 99], [5, 4, 3, 2, 1, 0]], jnp.float32)
    segments = jnp.asarray([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]], jnp.int32)
    safe = skipping.protected(importance, segments, 0.4)
    np.testing.assert_array_equal(safe, [[0, 1, 0, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    assert not skipping.protected(importance[:, :1], segments[:, :1], 0.9).any()


def test_the_model_skips_and_says_how_much(cfg, params, rows, run):
    full, out = run(cfg, params, *rows)
    assert out['active'].tolist() == [2]

    def skipped(kind, threshold, protect=0.0):
        skip = Skip(kind=kind, thresholds=((), (threshold,)), protect=protect)
        return run(cfg.replace(skip=skip), params, *rows)

    np.testing.assert_allclose(skipped('ratio', 0.0)[0], full, rtol=1e-5, atol=1e-5)
    logits, out = skipped('ratio', 1e9)
    first_only = run(cfg.replace(topk=1), params, *rows)[0]
    assert out['active'].tolist() == [1] and float(out['dropped'].sum()) == 0
    np.testing.assert_allclose(logits, first_only, rtol=1e-5, atol=1e-5)
    protected, out = skipped('ratio', 1e9, protect=1.0)
    np.testing.assert_allclose(protected, full, rtol=1e-5, atol=1e-5)
    some = skipped('ratio', 1e9, protect=0.5)[1]['active']
    assert all(1 < a < 2 for a in some.tolist())


def test_training_uses_every_choice(cfg, params, rows, run):
    skip = cfg.replace(skip=Skip(kind='ratio', thresholds=((), (9.0,))))
    np.testing.assert_array_equal(run(skip, params, *rows, train=True)[0],
                                  run(cfg, params, *rows, train=True)[0])


def test_cached_generation_skips_the_same_experts(cfg, params, run):
    skip = cfg.replace(skip=Skip(kind='ratio', thresholds=((), (0.7,))))
    prompt = [3, 5, 7, 11]
    new = generate(skip, params, [prompt], max_new=4)[0]
    text = list(prompt)
    for token in new:
        tokens = np.zeros((1, 8), np.int32)
        tokens[0, :len(text)] = text
        logits = run(skip, params, tokens, (np.arange(8) < len(text)).astype(np.int32)[None])[0]
        assert int(token) == int(np.argmax(logits[0, len(text) - 1]))
        text.append(int(token))


def test_a_config_with_skips_is_saved_and_checked(cfg):
    skip = Skip(kind='ratio', thresholds=((), (0.5,)), protect=0.02)
    full = cfg.replace(skip=skip)
    assert Config.from_json(full.to_json()) == full and hash(full) is not None
    for wrong, message in (
        ({'kind': 'rati'}, "did you mean 'ratio'"),
        ({'thresholds': ((0.5,), (0.5,))}, r'needs \[0, 1\]'),
        ({'protect': 2.0}, 'at most 1'),
    ):
        with pytest.raises(ValueError, match=message):
            cfg.replace(skip=dataclasses.replace(skip, **wrong))
