"""Routers of merged experts; the log-sum-exp fit against Monte-Carlo least squares."""

import numpy as np
import pytest

from prune.experts import routers
from prune.experts.merge import most_used, weights
from prune.experts.routers import Partition


def lse(z):
    peak = z.max(axis=1, keepdims=True)
    return (peak + np.log(np.exp(z - peak).sum(axis=1, keepdims=True)))[:, 0]


def gaussian(seed, size, spread):
    rng = np.random.default_rng(seed)
    factor = spread * rng.normal(size=(size, size)) / np.sqrt(size)
    return rng.normal(size=size), factor @ factor.T


@pytest.mark.parametrize('spread', [0.3, 1.0, 4.0])
@pytest.mark.parametrize('size', [2, 5])
def test_lse_fit_is_the_least_squares_fit(size, spread):
    mu, cov = gaussian(size, size, spread)
    a, c = routers.lse_fit(mu, cov)
    z = np.random.default_rng(7).multivariate_normal(mu, cov, 200_000)
    design = np.column_stack([z, np.ones(len(z))])
    fit = np.linalg.lstsq(design, lse(z), rcond=None)[0]
    np.testing.assert_allclose(a, fit[:-1], atol=0.02)
    np.testing.assert_allclose(c, fit[-1], atol=0.02 * max(1, spread))
    np.testing.assert_allclose(a.sum(), 1)


def test_lse_fit_of_certain_logits_is_softmax_and_its_tangent():
    mu = np.array([0.0, 1.0, -2.0])
    a, c = routers.lse_fit(mu, np.zeros((3, 3)))
    np.testing.assert_allclose(a, np.exp(mu) / np.exp(mu).sum())
    np.testing.assert_allclose(a @ mu + c, np.log(np.exp(mu).sum()))


def test_twins_share_their_row_and_gain_log_two():
    cov = np.ones((2, 2))
    a, c = routers.lse_fit(np.array([0.7, 0.7]), cov)
    np.testing.assert_allclose(a, [0.5, 0.5])
    np.testing.assert_allclose(c, np.log(2))


def case(seed, shift=1.0, tokens=150_000, width=6):
    """Isotropic Gaussian inputs around a mean, router rows [5, D], groups {0, 2}, {1}, {3, 4}."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, width)) + shift * rng.normal(size=width)
    kernel = rng.normal(size=(5, width))
    z, labels = x @ kernel.T, np.array([0, 1, 0, 2, 2])
    stats = {'tokens': np.asarray(tokens), 'logit_sum': z.sum(axis=0), 'logit_gram': z.T @ z,
             'input_sum': x.sum(axis=0)}
    count = np.bincount(z.argmax(axis=1), minlength=5)
    return x, kernel, stats, Partition(labels, weights(labels, count), most_used(labels, count))


@pytest.mark.parametrize('seed', range(3))
def test_logsumexp_router_is_the_least_squares_router_up_to_what_softmax_ignores(seed):
    x, kernel, stats, part = case(seed)
    fields = routers.logsumexp(part, stats, kernel, 0)
    ours = fields['router'] @ kernel + fields['router_shift']
    z = x @ kernel.T
    target = np.stack([lse(z[:, part.labels == g]) for g in range(3)], axis=1)
    theirs = np.linalg.lstsq(x, target, rcond=None)[0].T
    # Rows may share any vector: softmax sees differences only.
    center = np.eye(3) - 1 / 3
    np.testing.assert_allclose(center @ ours, center @ theirs, atol=0.05)


@pytest.mark.parametrize('seed', range(3))
def test_logsumexp_keeps_group_probabilities_better_than_the_other_routers(seed):
    x, kernel, stats, part = case(seed, tokens=20_000)
    z = x @ kernel.T
    logp = np.stack([lse(z[:, part.labels == g]) for g in range(3)], axis=1) - lse(z)[:, None]

    def divergence(name):
        fields = routers.ROUTERS[name](part, stats, kernel, 0)
        rows = fields['router'] @ kernel + fields.get('router_shift', 0)
        logq = x @ rows.T
        logq -= lse(logq)[:, None]
        return float((np.exp(logp) * (logp - logq)).sum(axis=1).mean())

    best = divergence('logsumexp')
    assert all(best < divergence(name) for name in ('reference', 'freq_mean', 'mean'))


def test_no_mean_input_no_shift():
    _, kernel, stats, part = case(0)
    stats = stats | {'input_sum': np.zeros(6)}
    assert not routers.logsumexp(part, stats, kernel, 0)['router_shift'].any()
    # Nothing to probe the variance with either: still finite.
    silent = stats | {'logit_sum': np.zeros(5), 'logit_gram': np.zeros((5, 5))}
    assert not routers.logsumexp(part, silent, np.zeros((5, 6)), 0)['router_shift'].any()


def test_the_simple_routers_by_hand():
    labels, count = np.array([0, 1, 0]), np.array([1, 5, 3])
    part = Partition(labels, weights(labels, count), most_used(labels, count))
    kernel = np.eye(3)
    assert routers.reference(part, {}, kernel, 0)['router'].tolist() == [[0, 0, 1], [0, 1, 0]]
    assert routers.freq_mean(part, {}, kernel, 0)['router'].tolist() == [[.25, 0, .75], [0, 1, 0]]
    assert routers.mean(part, {}, kernel, 0)['router'].tolist() == [[.5, 0, .5], [0, 1, 0]]
    assert routers.random(part, {}, kernel, 4) == {'fresh': 4}
    shared = routers.alias(part, {}, kernel, 0)
    assert shared['router'].tolist() == np.eye(3).tolist()
    assert shared['alias'].tolist() == [0, 1, 0]


def test_tables_and_types_agree():
    assert list(routers.ROUTERS) == list(routers.ROUTER_NEEDS) == list(
        routers.RouterInit.__args__)
