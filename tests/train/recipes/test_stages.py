"""Pretraining, fine-tuning and warming are the loop with their data."""

import dataclasses

import jax
import numpy as np

from moe_jax.base.tree import leaves_with_paths
from moe_jax.data import batches
from moe_jax.model import decoder
from tests.train.train_tiny import CFG, OPTIONS, batch, equal, params
from train import finetune, fit, pretrain, warm_routers

PACKED = jax.tree.map(lambda *rows: np.concatenate(rows), *(batch(i) for i in range(5)))


def test_pretrain_is_init_and_a_mixture():
    sets = [(PACKED, 3.0), (batch(9, rows=7), 1.0)]
    options = dataclasses.replace(OPTIONS, seed=3)
    trained, history = pretrain(CFG, sets, options)
    fresh = decoder.init(CFG, jax.random.key(3))
    expected, _ = fit(CFG, fresh, lambda start: batches.mixture(sets, 4, 3, start), options)
    assert equal(trained, expected) and history[-1]['step'] == 7


def test_finetune_is_a_stream():
    trained, _ = finetune(CFG, params(), PACKED, OPTIONS)
    expected, _ = fit(CFG, params(), lambda start: batches.stream(PACKED, 4, 0, start), OPTIONS)
    assert equal(trained, expected)


def test_warming_moves_routers_only():
    start = params()
    warmed, _ = warm_routers(CFG, start, PACKED, OPTIONS)
    for (path, old), (_, new) in zip(leaves_with_paths(start), leaves_with_paths(warmed),
                                     strict=True):
        assert equal(old, new) == ('moe/router' not in path), path
