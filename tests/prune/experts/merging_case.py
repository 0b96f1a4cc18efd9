"""A MoE layer in numpy whose experts come in planted groups, and its statistics by loops."""

import jax
import ml_dtypes
import numpy as np

from moe_jax import Config

LABELS = {0: np.array([0, 1, 0, 2, 3, 2, 1, 0]), 2: np.array([1, 0, 1, 2, 0, 2])}
WIDTH, HIDDEN, TOKENS, TOPK = 6, 5, 60, 2


def config(groups=1):
    return Config(
        vocab=16, positions=8, width=WIDTH, heads=1, mlp_hidden=4, expert_hidden=HIDDEN,
        experts=(8, 0, 6), topk=TOPK, gate='softmax_topk_renorm', groups=groups,
        groups_used=groups, capacity_eval=None,
    )


def make(seed=0, noise=0.05, dtype=np.float32):
    """Parameters of both MoE layers, and their statistics."""
    rng = np.random.default_rng(seed)
    params, stats = {}, {}
    for i, labels in LABELS.items():
        shapes = {'up': (WIDTH, HIDDEN), 'up_bias': (HIDDEN,), 'down': (HIDDEN, WIDTH),
                  'down_bias': (WIDTH,)}
        experts = {
            name: _planted(rng, labels, shape, noise).astype(dtype)
            for name, shape in shapes.items()
        }
        router = {'kernel': _planted(rng, labels, (WIDTH,), noise).astype(dtype)}
        params[f'layer_{i}'] = {'moe': {'experts': experts, 'router': router}}
        stats[i] = observe(params[f'layer_{i}']['moe'], rng.normal(size=(TOKENS, WIDTH)))
    return params, stats


def outputs(moe, x):
    """f_e(x_t) of every expert, [T, E, D]."""
    w = {name: np.asarray(leaf).astype(np.float64) for name, leaf in moe['experts'].items()}
    found = np.zeros((len(x), len(w['up']), x.shape[1]))
    for e in range(len(w['up'])):
        hidden = np.tanh(x @ w['up'][e] + w['up_bias'][e])
        found[:, e] = hidden @ w['down'][e] + w['down_bias'][e]
    return found


def routing(moe, x):
    """Logits [T, E] and gates [T, E], zero where not chosen."""
    z = x @ np.asarray(moe['router']['kernel']).astype(np.float64).T
    gates = np.zeros_like(z)
    for t, row in enumerate(z):
        best = np.argsort(-row, kind='stable')[:TOPK]
        gates[t, best] = np.exp(row[best] - row.max())
    return z, gates / gates.sum(axis=1, keepdims=True)


def observe(moe, x):
    y, (z, g) = outputs(moe, x), routing(moe, x)
    chosen, norm = g > 0, np.linalg.norm(y, axis=2)
    unit = y / norm[:, :, None]
    cos = np.einsum('tid,tjd->tij', unit, unit)
    both = chosen[:, :, None] & chosen[:, None, :]
    moments = [[(chosen * g**a * norm**c).sum(axis=0) for c in range(3)] for a in range(3)]
    count = chosen.sum(axis=0)
    return {
        'tokens': np.asarray(len(x)), 'count': count, 'together': both.sum(axis=0),
        'logit_gram': z.T @ z, 'logit_sum': z.sum(axis=0), 'input_sum': x.sum(axis=0),
        'moments': np.array(moments), 'output_sum': np.einsum('te,ted->ed', chosen * 1.0, y),
        'gated_output_sum': np.einsum('te,ted->ed', g, y),
        'output_cosine': (cos * both).sum(axis=0), 'dense_cosine': cos.sum(axis=0),
        'dense_output_sum': y.sum(axis=0), 'sample_output': y.astype(np.float32), 'x': x,
    }


def silent(stats):
    """Statistics of the same shapes in which nothing happened but tokens."""
    return {i: {name: np.zeros_like(a) if name != 'tokens' else a for name, a in layer.items()}
            for i, layer in stats.items()}


def renamed(params, order):
    """The experts of layer 0 under other numbers; new statistics for the same tokens."""
    moe = jax.tree.map(lambda leaf: leaf[order], params['layer_0']['moe'])
    return {**params, 'layer_0': {'moe': moe}}


def bfloat16(params):
    return jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), params)


def _planted(rng, labels, shape, noise):
    return rng.normal(size=(labels.max() + 1, *shape))[labels] + noise * rng.normal(
        size=(len(labels), *shape))
