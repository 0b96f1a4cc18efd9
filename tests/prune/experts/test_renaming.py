"""A law of every method: experts in another order give the same plan in that order.

Of a model whose experts have no clusters, so that nothing but the method decides. E experts, G
groups.
"""

import jax
import numpy as np
import pytest

import moe_jax
import prune
from moe_jax import Config
from moe_jax.base.tree import at, take
from prune.experts.methods import METHODS

CFG = Config(vocab=64, positions=16, width=12, heads=2, mlp_hidden=8, expert_hidden=6,
             experts=(10,), capacity_eval=None, topk=2, gate='softmax_topk_renorm', ffn_bias=False)
RNG = np.random.default_rng(0)
PARAMS = moe_jax.init(CFG, jax.random.key(0))  # all its experts are used
ORDERS = [RNG.permutation(10) for _ in range(2)]
BATCHES = [{'tokens': RNG.integers(0, 64, (4, 16)).astype(np.int32)} for _ in range(4)]
# Its choice is by the numbers of experts alone, which are their names.
BY_NAME = ('random',)


@pytest.fixture(scope='module')
def seen():
    """Parameters and statistics with all that any method asks for: as they are, and renamed."""
    wanted = prune.observe_options(*METHODS, reservoir=64)
    models = [PARAMS, *(at(PARAMS, 'layer_0/moe', lambda moe, order=order: take(moe, order))
                        for order in ORDERS)]
    return [(params, moe_jax.observe(CFG, params, BATCHES, **wanted)) for params in models]


def shares(name, params, stats, order) -> np.ndarray:
    """What each new expert is made of [G, E], by the first names, groups by their members."""
    options = {'before': jax.tree.map(lambda leaf: leaf * 0.5, params)} if (
        name == 'router_change') else {}
    mix = prune.plan(name, stats, params, CFG, experts=4, **options).layers[0].mix
    named = np.empty_like(mix)
    named[:, order] = mix
    return named[np.lexsort((named == 0).T[::-1])]


@pytest.mark.parametrize('name', [name for name in METHODS if name not in BY_NAME])
def test_other_names_of_experts_give_the_same_plan(seen, name):
    expected = shares(name, *seen[0], np.arange(10))
    for model, order in zip(seen[1:], ORDERS, strict=True):
        np.testing.assert_allclose(shares(name, *model, order), expected, atol=1e-3)
