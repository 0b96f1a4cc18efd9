"""A small gated model for the tests of weights inside experts, and every statistic of it."""

import jax
import jax.numpy as jnp
import numpy as np

import moe_jax
from moe_jax import Config
from moe_jax.model.decoder import shapes

CFG = Config(
    vocab=64, positions=16, width=8, heads=2, mlp_hidden=8, expert_hidden=12, experts=(4, 0, 4),
    topk=2, gate='softmax_topk_renorm', ffn='swiglu', ffn_bias=False, capacity_eval=None,
    capacity_train=None,
)
TOKENS = np.random.default_rng(0).integers(0, 64, (6, 16)).astype(np.int32)
BATCHES = [{'tokens': TOKENS[:3], 'mask': TOKENS[:3] >= 0, 'group': 'a'},
           {'tokens': TOKENS[3:], 'mask': TOKENS[3:] >= 0, 'group': 'b'}]
LEAVES = ('gate', 'up', 'down')


def drawn(cfg=CFG, seed=1, dtype=None):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), dtype or leaf.dtype),
        shapes(cfg))


def observed(cfg, params, **options):
    return moe_jax.observe(cfg, params, BATCHES, **options)


def with_gradients(stats, params):
    """Made-up sums of gradients beside the statistics: compiling the real ones takes long."""
    rng = np.random.default_rng(5)
    groups = {group: {i: sums | {
        f'{kind}/{leaf}': rng.random(weights.shape) for kind in ('grad_abs', 'grad_square')
        for leaf, weights in matrices(params, i).items()} for i, sums in layers.items()}
        for group, layers in stats.groups.items()}
    return moe_jax.Stats(stats.fingerprint, groups, data=stats.data)


def matrices(params, layer):
    """{leaf: float32 [E, in, out]} of a layer's experts."""
    experts = params[f'layer_{layer}']['moe']['experts']
    return {leaf: np.asarray(experts[leaf], np.float32) for leaf in LEAVES if leaf in experts}


def kept(plan, layer):
    """{leaf: bool [G, in, out]} of a plan, unpacked bit by bit."""
    found = {}
    for leaf, packed in plan.layers[layer].masks.items():
        shape = (plan.expert_hidden, plan.width) if leaf == 'down' else (
            plan.width, plan.expert_hidden)
        size = shape[0] * shape[1]
        bits = [[packed[e, n // 8] >> (7 - n % 8) & 1 for n in range(size)]
                for e in range(len(packed))]
        found[leaf] = np.array(bits, bool).reshape(len(packed), *shape)
    return found


def edited(stats, layer, **arrays):
    """Statistics of one group with some arrays of a layer replaced."""
    (group, layers), = stats.groups.items()
    return moe_jax.Stats(stats.fingerprint,
                         {group: {**layers, layer: {**layers[layer], **arrays}}})
