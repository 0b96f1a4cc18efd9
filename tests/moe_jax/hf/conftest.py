"""Tiny checkpoints of every family on disk, and our forward pass over each, once."""

from functools import cache, lru_cache

import jax
import numpy as np
import pytest

import moe_jax
from tests.moe_jax.hf import tiny


@lru_cache(maxsize=4)
def jitted(watch):
    return jax.jit(lambda cfg, *args: moe_jax.forward(cfg, *args, watch=watch),
                   static_argnums=0)


@pytest.fixture(scope='session')
def folder_of(tmp_path_factory):
    """folder_of(family, variant): the folder of a tiny checkpoint, written once."""
    root = tmp_path_factory.mktemp('tiny')

    @cache
    def write(family, variant, dtype='float32', shards=1):
        name = f'{family}-{variant}-{dtype}-{shards}'.replace(' ', '-')
        return tiny.write(root / name, family, variant, dtype=dtype, shards=shards)

    return write


@pytest.fixture(scope='session')
def loaded(folder_of):
    """loaded(family, variant): config and parameters, loaded once."""
    @cache
    def load(family, variant):
        return moe_jax.load(folder_of(family, variant))

    return load


@pytest.fixture(scope='session')
def ours(loaded):
    """ours(family, variant): logits and sorted chosen experts of tiny.TOKENS under tiny.MASK."""
    @cache
    def run(family, variant):
        cfg, params = loaded(family, variant)
        logits, out = jitted(('routing',))(
            cfg, params, tiny.TOKENS.astype(np.int32), tiny.MASK.astype(np.int32))
        chosen = [np.sort(out['routing'][i].ids, axis=-1) for i in cfg.moe_layers]
        return np.asarray(logits), np.stack(chosen)

    return run
