"""What becomes of the router when experts are merged into groups.

Each function takes (partition, stats, kernel [E, D], seed) and returns the router fields of a
`LayerPlan`. Letters: E experts, G groups, D model width, T tokens, z = W x router logits.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

RouterInit = Literal['random', 'reference', 'freq_mean', 'mean', 'logsumexp', 'alias']
# Statistics that a router reads beside those its method reads.
ROUTER_NEEDS = {
    'random': (),
    'reference': (),
    'freq_mean': (),
    'mean': (),
    'logsumexp': ('tokens', 'logit_sum', 'logit_gram', 'input_sum'),
    'alias': (),
}
SAMPLES = 8192


class Partition(NamedTuple):
    """labels [E] group of each expert, weights [G, E] of the merge, references [G] expert ids."""

    labels: np.ndarray
    weights: np.ndarray
    references: np.ndarray


def random(part: Partition, stats: Mapping, kernel: np.ndarray, seed: int) -> dict[str, Any]:
    """Fresh rows at the model's own scale (UNCURL, step 5): useless until the router is trained."""
    return {'fresh': seed}


def reference(part: Partition, stats: Mapping, kernel: np.ndarray, seed: int) -> dict[str, Any]:
    """The row of each group's reference expert."""
    return {'router': np.eye(len(part.labels))[part.references]}


def freq_mean(part: Partition, stats: Mapping, kernel: np.ndarray, seed: int) -> dict[str, Any]:
    """The mean row of each group, weighted as its experts are."""
    return {'router': part.weights}


def mean(part: Partition, stats: Mapping, kernel: np.ndarray, seed: int) -> dict[str, Any]:
    """The plain mean row of each group."""
    member = np.arange(len(part.weights))[:, None] == part.labels[None, :]
    return {'router': member / member.sum(axis=1, keepdims=True)}


def alias(part: Partition, stats: Mapping, kernel: np.ndarray, seed: int) -> dict[str, Any]:
    """All E rows stay, and rows of one group share its expert (M-SMoE): probabilities are kept."""
    return {'router': np.eye(len(part.labels)), 'alias': part.labels}


def logsumexp(part: Partition, stats: Mapping, kernel: np.ndarray, seed: int) -> dict[str, Any]:
    """The linear router nearest to log sum_{e in C} exp(z_e), which would keep the group's mass.

    A design of this library, in no paper. With the logits of a group taken as Gaussian with the
    observed mean and covariance, `lse_fit` gives the best affine fit a.z + c: row sum_e a_e w_e and
    an intercept c. Routers have no bias, so c is spelled through the mean input m = input_sum / T:
    the row gets c m / (|m|^2 + s^2), the least-squares stand-in for a constant when the input
    varies by s^2 in the direction of m. s^2 is not observed along m; the router rows probe it,
    s^2 = mean_e Var(z_e) / |w_e|^2. So a vanishing m gives no shift. Softmax does not see what all
    rows share, so the mean intercept of the groups is taken off first.
    """
    tokens = float(stats['tokens'])
    mu = stats['logit_sum'] / tokens
    cov = stats['logit_gram'] / tokens - np.outer(mu, mu)
    router = np.zeros((len(part.weights), len(part.labels)))
    intercept = np.zeros(len(part.weights))
    for g in range(len(part.weights)):
        ids = np.flatnonzero(part.labels == g)
        router[g, ids], intercept[g] = lse_fit(mu[ids], cov[np.ix_(ids, ids)])
    intercept -= intercept.mean()
    return {'router': router, 'router_shift': np.outer(intercept, _unit(stats, kernel, cov))}


def lse_fit(mu: np.ndarray, cov: np.ndarray) -> tuple[np.ndarray, float]:
    """Least-squares a [n], c of a.z + c for log sum exp(z), z ~ Normal(mu [n], cov [n, n]).

    Stein's lemma: Cov(z, f(z)) = cov E[grad f], so a = E[softmax(z)], and c = E[lse(z)] - a.mu. The
    expectations are means over SAMPLES fixed draws in antithetic pairs, since a Taylor series about
    mu is far off where logits spread by more than about 1.
    """
    if len(mu) == 1:
        return np.ones(1), 0.0
    values, vectors = np.linalg.eigh(cov)
    draws = np.random.default_rng(0).standard_normal((SAMPLES // 2, len(mu)))
    spread = (draws * np.sqrt(np.maximum(values, 0))) @ vectors.T
    z = mu + np.concatenate([spread, -spread])
    peak = z.max(axis=1, keepdims=True)
    weight = np.exp(z - peak)
    total = weight.sum(axis=1, keepdims=True)
    a = (weight / total).mean(axis=0)
    lse = peak + np.log(total)
    return a, float(lse.mean() - a @ mu)


# The order of the table is the order of RouterInit.
ROUTERS = {
    'random': random,
    'reference': reference,
    'freq_mean': freq_mean,
    'mean': mean,
    'logsumexp': logsumexp,
    'alias': alias,
}


def _unit(stats: Mapping, kernel: np.ndarray, cov: np.ndarray) -> np.ndarray:
    """The vector v [D] whose v.x is the best stand-in for the constant 1."""
    m = stats['input_sum'] / float(stats['tokens'])
    norm2 = (kernel**2).sum(axis=1)
    probed = norm2 > 0
    variance = np.maximum(np.diag(cov), 0)[probed] / norm2[probed]
    scale = float(m @ m + (variance.mean() if probed.any() else 0))
    return m / scale if scale > 0 else np.zeros_like(m)
