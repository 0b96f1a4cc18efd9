"""A MoE layer and its reservoir by numpy loops: every expert is evaluated on every token."""

import itertools

import numpy as np

from moe_jax import Config

GATES = ('softmax_topk', 'softmax_topk_renorm', 'topk_softmax', 'sigmoid_topk',
         'sigmoid_topk_renorm')
D, F = 5, 7


def config(experts=6, **fields):
    return Config(vocab=8, positions=8, width=D, heads=1, mlp_hidden=8, expert_hidden=F,
                  experts=(experts,), capacity_eval=None, **{'topk': 2} | fields)


def layer(cfg, seed=0):
    """Random parameters of the one MoE layer of a config, float32."""
    rng, experts = np.random.default_rng(seed), cfg.experts[0]
    shapes = {'up': (D, F), 'up_bias': (F,), 'down': (F, D), 'down_bias': (D,)}
    moe = {'experts': {name: rng.normal(size=(experts, *shape)).astype(np.float32)
                       for name, shape in shapes.items()},
           'router': {'kernel': rng.normal(size=(experts, D)).astype(np.float32)}}
    if cfg.correction:
        moe['router']['correction'] = 0.3 * rng.normal(size=experts).astype(np.float32)
    return {'layer_0': {'moe': moe}}


def expert(weights, e, x):
    """GELU in its tanh form between two affine maps, [D] -> [D]."""
    w = {name: leaf[e].astype(np.float64) for name, leaf in weights.items()}
    h = x @ w['up'] + w['up_bias']
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return h @ w['down'] + w['down_bias']


def route(z, correction, cfg, left=None):
    """{row: gate} of one token's logits z when only the rows `left` (default: all) are there.

    The others keep their place in the groups and are never chosen.
    """
    left = range(len(z)) if left is None else left
    alive = np.isin(np.arange(len(z)), left)
    power = np.where(alive, np.exp(z - z[alive].max()), 0.0)
    sigmoid = 1 / (1 + np.exp(-z))
    scores = {'softmax': power / power.sum(), 'topk': z, 'sigmoid': sigmoid}[
        cfg.gate.split('_')[0]]
    ranked = np.where(alive, scores + (0 if correction is None else correction), -np.inf)
    open_rows = left
    if cfg.groups > 1:
        blocks = np.arange(len(z)).reshape(cfg.groups, -1)
        best = 2 if cfg.gate.startswith('sigmoid') else 1
        worth = [sum(sorted(ranked[b])[-best:]) for b in blocks]
        used = sorted(range(cfg.groups), key=lambda b: (-worth[b], b))[:cfg.groups_used]
        open_rows = [r for b in used for r in blocks[b] if r in left]
    chosen = sorted(open_rows, key=lambda r: (-ranked[r], r))[:cfg.topk]
    gates = {r: scores[r] for r in chosen}
    if cfg.gate == 'topk_softmax':
        gates = {r: np.exp(z[r] - max(z[j] for j in chosen)) for r in chosen}
    if cfg.gate.endswith('renorm') or cfg.gate == 'topk_softmax':
        gates = {r: g / sum(gates.values()) for r, g in gates.items()}
    return {r: g * cfg.gate_scale for r, g in gates.items()}


def output(weights, z, correction, cfg, x):
    """The layer's output of one token, [D]."""
    return sum(g * expert(weights, e, x) for e, g in route(z, correction, cfg).items())


def reservoir(cfg, params, tokens=24, seed=0, logits=None):
    """The sample_ statistics of the layer on random inputs, by loops over tokens and experts."""
    moe = params['layer_0']['moe']
    x = np.random.default_rng(seed).normal(size=(tokens, D))
    z = x @ moe['router']['kernel'].T.astype(np.float64) if logits is None else logits
    correction, experts = moe['router'].get('correction'), cfg.experts[0]
    gates, gram = np.zeros((tokens, experts)), np.zeros((tokens, experts, experts))
    cross, square = np.zeros((tokens, experts)), np.zeros(tokens)
    for t in range(tokens):
        f = [expert(moe['experts'], e, x[t]) for e in range(experts)]
        for e, g in route(z[t], correction, cfg).items():
            gates[t, e] = g
        y = sum(gates[t, e] * f[e] for e in range(experts))
        cross[t], square[t] = [f_e @ y for f_e in f], y @ y
        gram[t] = [[a @ b for b in f] for a in f]
    found = {'input': x, 'logits': z, 'gates': gates, 'gram': gram, 'cross': cross,
             'square': square}
    return {f'sample_{name}': value.astype(np.float32) for name, value in found.items()}


def token_errors(cfg, params, seen, subset):
    """|y_t - y'_t|^2 of every token, with the experts of the subset evaluated again."""
    moe, subset = params['layer_0']['moe'], np.asarray(subset)
    weights = {name: leaf[subset] for name, leaf in moe['experts'].items()}
    correction = moe['router'].get('correction')
    few = None if correction is None else correction[subset]
    found = []
    for x, z in zip(seen['sample_input'].astype(float), seen['sample_logits'].astype(float),
                    strict=True):
        before = output(moe['experts'], z, correction, cfg, x)
        found.append(np.sum((before - output(weights, z[subset], few, cfg, x)) ** 2))
    return np.array(found)


def error(cfg, params, seen, subset):
    return token_errors(cfg, params, seen, subset).mean()


def error_left(cfg, params, seen, left):
    """As `error`, of rows closed instead of cut out, so that groups may keep unequally many."""
    moe = params['layer_0']['moe']
    correction, found = moe['router'].get('correction'), []
    for x, z in zip(seen['sample_input'].astype(float), seen['sample_logits'].astype(float),
                    strict=True):
        f = [expert(moe['experts'], e, x) for e in range(len(z))]
        y, z_y = (sum(g * f[e] for e, g in route(z, correction, cfg, some).items())
                  for some in (None, list(left)))
        found.append(np.sum((y - z_y) ** 2))
    return np.mean(found)


def sets(experts, count, groups=1):
    """Every set of `count` experts with equally many of each group, in lexicographic order."""
    size = experts // groups
    return [s for s in itertools.combinations(range(experts), count)
            if all(sum(e // size == g for e in s) == count // groups for g in range(groups))]


def renamed(params, seen, order):
    """The same layer when expert order[i] is called i."""
    moe = params['layer_0']['moe']
    new = {part: {name: leaf[order] for name, leaf in moe[part].items()} for part in moe}
    found = {name: value[:, order] if name not in ('sample_square', 'sample_input') else value
             for name, value in seen.items()}
    found['sample_gram'] = found['sample_gram'][:, :, order]
    return {'layer_0': {'moe': new}}, found
