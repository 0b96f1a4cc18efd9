"""Distances between an original and a smaller model: numpy on logits, identities, resampling."""

import io

import numpy as np
import pytest
from rich.console import Console
from scipy import special

import moe_jax
from moe_jax.base.tree import at, take
from moe_jax.evals.quality import METRICS, Quality, Reference


@pytest.fixture(scope='module')
def smaller(cfg, params):
    """The model without the experts 1 and 3 of its first layer."""
    small = at(params, 'layer_0/moe', lambda moe: take(moe, [0, 2]))
    return cfg.replace(experts=(2, 0, 4)), small


@pytest.fixture(scope='module')
def batches():
    rng = np.random.default_rng(5)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 2, 2, 3],
                         [1] * 9, [1, 1, 1, 0, 0, 0, 0, 0, 0]], np.int32)
    weights = rng.integers(0, 3, (4, 9)).astype(np.float32)
    return [{'tokens': rng.integers(0, 23, (4, 9)), 'segments': segments, 'group': group,
             **({'weights': weights} if group == 'b' else {})} for group in 'ab']


def by_hand(cfg, params, small_cfg, small, batch):
    """METRICS and weights by row, from logits, token by token."""
    tokens, segments = batch['tokens'].astype(np.int32), batch['segments']
    p, q = (special.log_softmax(np.asarray(moe_jax.apply(c, w, tokens, segments), np.float64), -1)
            for c, w in ((cfg, params), (small_cfg, small)))
    found = {name: np.zeros(len(tokens)) for name in (*METRICS, 'tokens')}
    for b in range(len(tokens)):
        for t in range(tokens.shape[1] - 1):
            if segments[b, t + 1] == 0 or segments[b, t + 1] != segments[b, t]:
                continue
            w = batch['weights'][b, t + 1] if 'weights' in batch else 1.0
            a, c, x = p[b, t], q[b, t], tokens[b, t + 1]
            one = {'nats': -a[x], 'nats_small': -c[x], 'lost': a[x] - c[x],
                   'kl': special.rel_entr(np.exp(a), np.exp(c)).sum(),
                   'acceptance': 1 - np.abs(np.exp(a) - np.exp(c)).sum() / 2,
                   'agreement': float(a.argmax() == c.argmax()), 'tokens': 1.0}
            for name, value in one.items():
                found[name][b] += w * value
    return found


def test_metrics_equal_numpy_on_logits(cfg, params, smaller, batches):
    found = moe_jax.compare(cfg, params, *smaller, batches)
    for batch in batches:
        wanted = by_hand(cfg, params, *smaller, batch)
        kept = wanted['tokens'] > 0
        for name, value in found.groups[batch['group']].items():
            np.testing.assert_allclose(value, wanted[name][kept], rtol=2e-5, atol=2e-5,
                                       err_msg=name)
        assert found.mean('kl', batch['group']) == pytest.approx(
            wanted['kl'].sum() / wanted['tokens'].sum(), rel=1e-4)
    whole = found.summary()
    assert whole['perplexity_small'] == pytest.approx(np.exp(whole['nats'] + whole['lost']))
    assert whole['tokens'] == sum(rows['tokens'].sum() for rows in found.groups.values())


def test_a_model_is_at_no_distance_from_itself(cfg, params, batches):
    found = moe_jax.compare(cfg, params, cfg, params, batches).summary()
    assert found['lost'] == found['kl'] == 0 and found['agreement'] == 1
    assert found['acceptance'] == pytest.approx(1, abs=1e-6)


def test_acceptance_does_not_ask_which_is_the_original(cfg, params, smaller, batches):
    one = moe_jax.compare(cfg, params, *smaller, batches)
    other = moe_jax.compare(*smaller, cfg, params, batches)
    assert one.mean('acceptance') == pytest.approx(other.mean('acceptance'), rel=1e-5)
    assert one.mean('lost') == pytest.approx(-other.mean('lost'), rel=1e-4)
    assert 0 < one.mean('acceptance') < 1 < 1 + one.mean('kl')


def test_logits_in_small_blocks_and_other_batches_give_the_same(cfg, params, smaller, batches,
                                                                monkeypatch):
    wanted = moe_jax.compare(cfg, params, *smaller, batches[1:])
    monkeypatch.setattr('moe_jax.evals.quality.BLOCK', 2 * 23 * 5)  # 5 tokens at a time
    rows = [{k: v if k == 'group' else v[i:i + 1] for k, v in batches[1].items()}
            for i in range(4)]
    found = moe_jax.compare(cfg, params, *smaller, rows)
    for name, value in found.groups['b'].items():
        np.testing.assert_allclose(value, wanted.groups['b'][name], rtol=1e-5, atol=1e-5)


def test_a_reference_compares_as_compare_does(cfg, params, smaller, batches):
    reference = Reference.of(cfg, params, batches)
    found, wanted = reference.compare(*smaller), moe_jax.compare(cfg, params, *smaller, batches)
    for group, rows in wanted.groups.items():
        for name, value in rows.items():
            np.testing.assert_allclose(found.groups[group][name], value, rtol=1e-5, atol=1e-5)
    assert found.active == pytest.approx(wanted.active)


def test_experts_used_are_counted(cfg, params, smaller, batches):
    assert moe_jax.compare(cfg, params, *smaller, batches).active == pytest.approx((2.0, 2.0))
    skip = moe_jax.config.Skip(kind='ratio', thresholds=((1.0,), (), (0.0,)))
    found = moe_jax.compare(cfg, params, cfg.replace(skip=skip), params, batches)
    assert found.active[0] == pytest.approx(1.0) and found.active[1] == pytest.approx(2.0)


def test_intervals_are_those_of_resampled_rows():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 9, 200).astype(float)
    rows = {name: tokens * rng.normal(0.5, 1, 200) for name in METRICS} | {'tokens': tokens}
    quality = Quality({'all': rows})
    low, high = quality.interval('lost')
    picks = rng.integers(0, 200, (4000, 200))
    means = rows['lost'][picks].sum(1) / tokens[picks].sum(1)
    assert np.allclose([low, high], np.quantile(means, [0.025, 0.975]), atol=0.03)
    assert low < quality.mean('lost') < high and quality.interval('lost') == (low, high)
    single = Quality({'all': {name: value[:1] for name, value in rows.items()}})
    assert np.isnan(single.interval('lost')).all()


@pytest.mark.parametrize('fault, message', [
    (lambda b: {**b, 'segments': 0 * b['segments']}, 'nothing to predict'),
    (lambda b: {**b, 'weights': np.zeros((4, 9), np.float32)}, 'nothing to predict'),
    (lambda b: {**b, 'weights': np.ones((4, 3), np.float32)}, 'weights'),
    (lambda b: {**b, 'tokens': b['tokens'] + 23}, 'token ids'),
])
def test_batches_that_say_nothing_are_refused(cfg, params, batches, fault, message):
    with pytest.raises(ValueError, match=message):
        moe_jax.compare(cfg, params, cfg, params, [fault(batches[1])])


def test_other_vocabularies_weights_and_names_are_refused(cfg, params, batches, draw):
    other = cfg.replace(vocab=24)
    with pytest.raises(ValueError, match='vocabularies of 23 and 24'):
        moe_jax.compare(cfg, params, other, draw(other), batches)
    broken = at(params, 'norm_final/scale', lambda leaf: leaf * np.nan)
    with pytest.raises(ValueError, match='not finite'):
        moe_jax.compare(cfg, params, cfg, broken, batches)
    quality = moe_jax.compare(cfg, params, cfg, params, batches)
    with pytest.raises(ValueError, match="'lost'"):
        quality.mean('loss')
    with pytest.raises(ValueError, match="no group 'c'"):
        quality.mean('kl', 'c')


def test_the_table_fits_a_terminal_and_shows_wrecked_models():
    rows = {name: np.array([3.0, 3.0]) for name in (*METRICS, 'tokens')}
    rows |= {'nats': np.array([6.0, 6.0]), 'nats_small': np.array([3e4, 3e4])}
    quality = Quality({'code': rows, 'lm-verse': rows})
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(quality.table())
    lines = console.export_text().splitlines()
    assert [line.split()[0] for line in lines[3:6]] == ['code', 'lm-verse', 'all']
    assert all(len(line) <= 80 and '…' not in line for line in lines)
    assert '7.39' in lines[3] and 'inf' in lines[3] and '1.000 [1.000, 1.000]' in lines[3]
