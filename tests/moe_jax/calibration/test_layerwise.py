"""The layer-by-layer driver: the same statistics where nothing changes, the new prefix where it
does, and the original's outputs as targets."""

import jax
import numpy as np
import pytest

from moe_jax import observe
from moe_jax.base.tree import at, take
from moe_jax.calibration.layerwise import layerwise
from moe_jax.calibration.stats import Stats
from tests.moe_jax.calibration.test_observe import equal


@pytest.fixture(scope='module')
def batches():
    rng = np.random.default_rng(7)
    mask = np.ones((2, 9), bool)
    mask[1, 5:] = False
    return [{'tokens': rng.integers(0, 23, (2, 9)), 'mask': mask, 'group': group}
            for group in 'aba']


def unchanged(i, cfg, layer, stats):
    return layer, cfg


def halved(i, cfg, layer, stats):
    """Keep the experts 0 and 2 of layer 0."""
    if i:
        return layer, cfg
    return at(layer, 'moe', lambda moe: take(moe, [0, 2])), cfg.replace(experts=(2,))


def test_without_changes_it_sees_what_observe_sees(cfg, params, batches):
    wanted, steps = observe(cfg, params, batches, reservoir=8), []
    out, small, found = layerwise(cfg, params, batches, unchanged, reservoir=8,
                                  progress=lambda *step: steps.append(step))
    assert small == cfg and steps == [(1, 3), (2, 3), (3, 3)]
    jax.tree.map(np.testing.assert_array_equal, out, params)
    assert (found.fingerprint, found.data) == (wanted.fingerprint, wanted.data)
    for i in (0, 2):
        for group in ('a', 'b'):
            equal(found.layer(i, group), wanted.layer(i, group), rtol=1e-4)


def test_later_layers_see_the_changed_prefix(cfg, params, batches):
    given = {}

    def compress(i, one, layer, stats):
        given[i] = (one, stats)
        return halved(i, one, layer, stats)

    out, small, found = layerwise(cfg, params, batches, compress)
    assert small.experts == (2, 0, 4) and small == small.fit(out)
    assert given[0][0].experts == (4,) and isinstance(given[2][1], Stats)
    after = observe(small, out, batches)
    before = observe(cfg, params, batches)
    equal(found.layer(2), after.layer(2), rtol=1e-4)
    equal(found.layer(0), before.layer(0), rtol=1e-5)
    assert abs(found.layer(2)['logit_sum'] - before.layer(2)['logit_sum']).max() > 1e-3


def test_targets_are_the_original_outputs(cfg, params, batches):
    wanted = observe(cfg, params, batches, reservoir=8)
    _, _, found = layerwise(cfg, params, batches, halved, targets=True, reservoir=8)
    for group in ('a', 'b'):
        mine, original = found.layer(2, group), wanted.layer(2, group)
        np.testing.assert_array_equal(mine['sample_key'], original['sample_key'])
        np.testing.assert_allclose(mine['sample_square'], original['sample_square'], rtol=1e-4)
        assert abs(mine['sample_gram'] - original['sample_gram']).max() > 1e-3


def test_what_it_cannot_do_is_refused(cfg, params, batches):
    with pytest.raises(ValueError, match='gradients need the whole model'):
        layerwise(cfg, params, batches, unchanged, gradients=True)
    with pytest.raises(ValueError, match='no valid token'):
        layerwise(cfg, params, [], unchanged)
