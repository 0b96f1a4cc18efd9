"""A small random model, its statistics, and statistics made from given router logits."""

import jax
import numpy as np
import pytest

import moe_jax
from moe_jax import Config, Stats

EXPERTS = 6


@pytest.fixture(scope='session')
def cfg() -> Config:
    return Config(
        vocab=64, positions=16, width=16, heads=2, mlp_hidden=16, expert_hidden=12,
        experts=(EXPERTS, 0, EXPERTS), capacity_eval=None,
    )


@pytest.fixture(scope='session')
def params(cfg):
    return lively(moe_jax.init(cfg, jax.random.key(0)))


@pytest.fixture(scope='session')
def tokens(cfg):
    return np.random.default_rng(0).integers(0, cfg.vocab, (4, 16)).astype(np.int32)


@pytest.fixture(scope='session')
def stats(cfg, params, tokens) -> Stats:
    return moe_jax.observe(cfg, params, [{'tokens': tokens, 'mask': np.ones_like(tokens, bool)}])


@pytest.fixture(scope='session')
def from_logits():
    """Stats of any logits [T, E] per layer, with inputs [T, D] per layer, top-1 routing."""
    return stats_from_logits


def lively(params):
    """Biases away from zero and routers away from uniform, so that forgetting either shows."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(treedef, [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ])


def stats_from_logits(logits: dict, inputs: dict, counts: dict | None = None) -> Stats:
    layers = {}
    for i, z in logits.items():
        z = np.asarray(z, np.float64)
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        first = p.argmax(axis=1)
        count = np.bincount(first, minlength=z.shape[1]) if counts is None else counts[i]
        layers[i] = {
            'tokens': np.asarray(len(z)), 'count': np.asarray(count),
            'count_top1': np.asarray(count), 'logit_sum': z.sum(axis=0), 'logit_gram': z.T @ z,
            'gate_sum': np.bincount(first, p.max(axis=1), z.shape[1]), 'prob_sum': p.sum(axis=0),
            'input_sum': np.asarray(inputs[i], np.float64).sum(axis=0),
        }
    return Stats('made up', {'all': layers})
