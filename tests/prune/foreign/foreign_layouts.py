"""Models of ours written in the layouts of others, and the descriptions of those."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

import moe_jax
from moe_jax.calibration.expert_sums import ExpertSums
from prune import Foreign, Leaf

EXPERTS, LAYERS = 6, (0, 2)
WORKINGS = {'topk': 2, 'gate': 'softmax_topk_renorm'}


def last_axis(layers):
    """Experts last, router [D, E], biases, dicts in dicts."""
    def block(moe):
        w = {name: np.moveaxis(leaf, 0, -1) for name, leaf in moe['experts'].items()}
        return {'ff': {'router': {'kernel': moe['router']['kernel'].T},
                       'up': {'kernel': w['up'], 'bias': w['up_bias']},
                       'down': {'kernel': w['down'], 'bias': w['down_bias']}}, 'norm': np.ones(3)}
    return {'head': np.ones(2), 'body': {f'block{i}': block(moe) for i, moe in enumerate(layers)}}


def middle_transposed(layers):
    """Experts in the middle, matrices the other way round; frozen dicts."""
    return FrozenDict({f'moe_{i}': {
        'wg': moe['router']['kernel'].T,
        **{name: np.transpose(leaf, (2, 0, 1)) for name, leaf in moe['experts'].items()},
    } for i, moe in enumerate(layers)})


def own_subtrees(layers):
    """A subtree for each expert, [F, D] as in torch; the parts of a layer in a list."""
    def block(moe):
        w = moe['experts']
        return [moe['router']['kernel'], {
            f'experts_{e}': {name: {'kernel': leaf[e].T} for name, leaf in w.items()}
            for e in range(len(w['up']))}]
    return {'blocks': [block(moe) for moe in layers]}


def lists_of_experts(layers):
    """Experts as items of a list."""
    return {f'layer{i}': {'gate': moe['router']['kernel'].T, 'experts': [
        {name: leaf[e] for name, leaf in moe['experts'].items()}
        for e in range(len(moe['experts']['up']))]} for i, moe in enumerate(layers)}


def stacked(layers):
    """Layers on a leading axis, as nn.scan leaves them, experts on the second."""
    both = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
    return {'scan': {'moe': {'router': np.swapaxes(both['router']['kernel'], 1, 2),
                             **both['experts']}}}


GATED = ('gate', 'up', 'down')
LAYOUTS = {
    last_axis: Foreign(
        layers=['body/block0/ff', 'body/block1/ff'], router=Leaf('router/kernel', axis=1),
        experts={'up': Leaf('up/kernel', axis=2), 'up_bias': Leaf('up/bias', axis=-1),
                 'down': Leaf('down/kernel', axis=-1), 'down_bias': Leaf('down/bias', axis=1)},
        ffn='gelu', **WORKINGS),
    middle_transposed: Foreign(
        layers=['moe_0', 'moe_1'], router=Leaf('wg', axis=1), ffn='swiglu', **WORKINGS,
        experts={name: Leaf(name, axis=1, transposed=True) for name in GATED}),
    own_subtrees: Foreign(
        layers=['blocks/0', 'blocks/1'], router=Leaf('0'), ffn='swiglu', **WORKINGS,
        experts={name: Leaf(f'1/experts_{{e}}/{name}/kernel', transposed=True) for name in GATED}),
    lists_of_experts: Foreign(
        layers=['layer0', 'layer1'], router=Leaf('gate', axis=1), ffn='swiglu', **WORKINGS,
        experts={name: Leaf(f'experts/{{e}}/{name}') for name in GATED}),
    stacked: Foreign(
        layers=['scan/moe'], layer_axis=0, router=Leaf('router', axis=1), ffn='swiglu', **WORKINGS,
        experts={name: Leaf(name) for name in GATED}),
}


class Ours:
    """A model of ours, its statistics, and what its MoE layers read."""

    def __init__(self, ffn, draw):
        self.cfg = moe_jax.Config(
            vocab=40, positions=12, width=8, heads=2, mlp_hidden=8, expert_hidden=5,
            experts=(EXPERTS, 0, EXPERTS), capacity_eval=None, ffn=ffn, ffn_bias=ffn == 'gelu',
            **WORKINGS)
        self.params = draw(self.cfg, seed=3)
        rng = np.random.default_rng(1)
        mask = np.ones((4, 12), bool)
        mask[1, 9:], mask[3, 4:] = False, False
        self.batches = [{'tokens': rng.integers(0, 40, (4, 12)), 'mask': mask, 'group': group}
                        for group in ('code', 'drama')]
        self.options = {'reservoir': 10, 'dense': True, 'grams': True}
        self.stats = moe_jax.observe(self.cfg, self.params, self.batches, **self.options)
        self.layers = layers_of(self.params)
        self.inputs = [{**batch, **dict(enumerate(self.read(batch)))} for batch in self.batches]

    def read(self, batch):
        """What each MoE layer reads."""
        run = jax.jit(moe_jax.forward, static_argnums=0, static_argnames=('watch', 'observer'))
        _, out = run(self.cfg, self.params, jnp.where(batch['mask'], batch['tokens'], 0),
                     batch['mask'].astype(np.int32), watch=('routing',), observer=ExpertSums())
        return [np.asarray(out['routing'][i].inputs).reshape(4, 12, -1) for i in LAYERS]


def layers_of(params):
    return [jax.tree.map(np.asarray, params[f'layer_{i}']['moe']) for i in LAYERS]
