"""One tiny model with every part; random leaves, biases too, so that forgetting one shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax import Config
from moe_jax.model import decoder


@pytest.fixture(scope='session')
def cfg() -> Config:
    return Config(
        vocab=23, positions=10, width=8, heads=2, mlp_hidden=12, expert_hidden=6,
        experts=(4, 0, 4), topk=2, capacity_train=None, capacity_eval=None,
    )


@pytest.fixture(scope='session')
def draw():
    """draw(cfg, seed=0): random parameters of a config, without compiling anything."""

    def random_params(cfg, seed=0):
        rng = np.random.default_rng(seed)
        return jax.tree.map(
            lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype),
            decoder.shapes(cfg),
        )

    return random_params


@pytest.fixture(scope='session')
def params(cfg, draw):
    return draw(cfg)


@pytest.fixture(scope='session')
def run():
    """model.forward compiled once per config and set of flags."""
    static = ('train', 'watch', 'observer')
    return jax.jit(decoder.forward, static_argnums=0, static_argnames=static)


@pytest.fixture(scope='session')
def rows():
    """tokens and segments [2, 9]: packed documents, padding inside and at the end."""
    tokens = np.random.default_rng(1).integers(0, 23, (2, 9)).astype(np.int32)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 2, 2, 3]], np.int32)
    return tokens, segments
