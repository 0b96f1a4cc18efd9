"""How long UNCURL takes to plan one layer of many experts from saved statistics, and its memory.

Almost all of it is alignment, whose time depends on the weights, so there are three kinds of them.
'copies': hidden units of the experts of a group are those of one expert in another order, with
noise. 'random': unrelated. 'shared': unrelated but for a direction that all hidden units share more
or less, so that many want the same partner. Times are wall-clock; the memory is the peak of the
process, weights included, over the bytes of the layer.

Letters: E experts, G groups, D width, F hidden width, T tokens.
"""

import argparse
from typing import Any

import numpy as np

import prune
from benchmarks.measured import Measured, Results, peak, seconds
from moe_jax import Config, Stats
from moe_jax.model.decoder import shapes
from moe_jax.model.fingerprint import fingerprint

SIZES = {'full': (128, 32, 1024, 4096), 'small': (16, 4, 128, 512)}
TOKENS = 4096


def run(args: argparse.Namespace) -> Results:
    """Seconds and peak memory for each kind of weights."""
    experts, groups, width, hidden = SIZES['small' if args.small else 'full']
    cfg = Config(
        vocab=8, positions=8, width=width, heads=1, mlp_hidden=8, expert_hidden=hidden,
        experts=(experts,), ffn_bias=False,
    )
    rng = np.random.default_rng(args.seed)
    labels = np.arange(experts) % groups
    params = empty(cfg)
    leaves = params['layer_0']['moe']['experts']
    size = sum(leaf.nbytes for leaf in leaves.values())
    params['layer_0']['moe']['router']['kernel'][...] = rng.standard_normal((experts, width))
    layer = statistics(labels, rng)
    results = []
    for kind, fill in KINDS.items():
        fill(leaves, labels, rng)
        stats = Stats(fingerprint(params, cfg), {'all': {0: layer}})
        took = seconds(lambda stats=stats: prune.plan('uncurl', stats, params, cfg, experts=groups))
        results += [Measured(f'plan, {kind} weights', took, 's', ('<=', 180.0)),
                  Measured(f'peak memory, {kind} weights, over the layer', peak() / size, 'x',
                           ('<=', 2.0))]
    yield (f'one layer, E={experts}, G={groups}, D={width}, F={hidden}, float32, '
           f'{size / 1e9:.2f} GB of experts, alignment included', results)


def empty(cfg: Config) -> dict[str, Any]:
    """Parameters of the config as numpy arrays; the experts are filled later."""
    def build(tree: Any) -> Any:
        if isinstance(tree, dict):
            return {name: build(leaf) for name, leaf in tree.items()}
        return np.zeros(tree.shape, np.float32)

    return build(shapes(cfg))


def statistics(labels: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Statistics of the layer of a calibration pass in which the logits of a group go together."""
    z = rng.standard_normal((TOKENS, labels.max() + 1))[:, labels]
    z = z + 0.3 * rng.standard_normal(z.shape)
    first = np.bincount(z.argmax(axis=1), minlength=len(labels))
    return {'tokens': np.asarray(TOKENS), 'count_top1': first, 'logit_gram': z.T @ z}


def fill_random(leaves: dict[str, np.ndarray], labels: np.ndarray, rng: np.random.Generator
                ) -> None:
    """Unrelated weights, of variance one over the rows they are summed over."""
    for leaf in leaves.values():
        for expert in leaf:
            rng.standard_normal(dtype=np.float32, out=expert)
            expert *= len(expert) ** -0.5


def fill_copies(leaves: dict[str, np.ndarray], labels: np.ndarray, rng: np.random.Generator
                ) -> None:
    """Every expert is the first of its group with hidden units reordered, and half as much noise.
    """
    fill_random(leaves, labels, rng)
    hidden = leaves['up'].shape[2]
    for e, group in enumerate(labels):
        first = int(np.flatnonzero(labels == group)[0])
        if e != first:
            order = rng.permutation(hidden)
            leaves['up'][e] = leaves['up'][first][:, order] + 0.5 * leaves['up'][e]
            leaves['down'][e] = leaves['down'][first][order] + 0.5 * leaves['down'][e]


def fill_shared(leaves: dict[str, np.ndarray], labels: np.ndarray, rng: np.random.Generator
                ) -> None:
    """Unrelated weights, and one direction in which every hidden unit has some share."""
    fill_random(leaves, labels, rng)
    width, hidden = leaves['up'].shape[1:]
    into = rng.standard_normal((width, 1), np.float32) * width**-0.5
    out = rng.standard_normal((1, width), np.float32) * hidden**-0.5
    for up, down in zip(leaves['up'], leaves['down'], strict=True):
        share = np.abs(rng.standard_normal(hidden, np.float32))
        up += into * share
        down += share[:, None] * out


KINDS = {'copies': fill_copies, 'random': fill_random, 'shared': fill_shared}
