"""A small random model, its statistics, and statistics made from given router logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import moe_jax
from moe_jax import Config, Stats
from moe_jax.model.decoder import shapes

EXPERTS = 6


@pytest.fixture(scope='session')
def cfg() -> Config:
    return Config(
        vocab=64, positions=16, width=16, heads=2, mlp_hidden=16, expert_hidden=12,
        experts=(EXPERTS, 0, EXPERTS), capacity_eval=None,
    )


@pytest.fixture(scope='session')
def draw():
    return random_params


@pytest.fixture(scope='session')
def logits_of():
    """moe_jax.apply, compiled once per config."""
    return jax.jit(moe_jax.apply, static_argnums=0)


@pytest.fixture(scope='session')
def params(cfg):
    return random_params(cfg)


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


@pytest.fixture(scope='session')
def edited():
    return edited_stats


def random_params(cfg, seed=0):
    """Every leaf random, biases too, so that forgetting one shows; and no compilation."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype),
        shapes(cfg),
    )


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


def edited_stats(stats, layer, **arrays):
    """The statistics with some arrays of one layer replaced."""
    layers = stats.groups['all']
    changed = {**layers[layer], **arrays}
    return Stats(stats.fingerprint, {'all': {**layers, layer: changed}})
