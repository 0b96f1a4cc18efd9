"""The whole model again, in plain float64 loops: the oracle of the core's tests."""

import math

import numpy as np


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def norm(x, p):
    mean, var = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * p['scale'] + p['bias']


def ffn(x, up, up_bias, down, down_bias):
    return gelu(x @ up + up_bias) @ down + down_bias


def choose(probs, topk):
    """The topk largest of each row of probs [N, R], ties to the lower index."""
    return np.array([sorted(range(len(row)), key=lambda r: (-row[r], r))[:topk] for row in probs])


def gates_of(probs, ids, gate):
    """Gates of chosen softmax shares: raw, or divided by their sum, which is what a softmax over
    the chosen logits gives too."""
    chosen = np.take_along_axis(probs, ids, axis=1)
    raw = gate == 'softmax_topk'
    return chosen if raw else chosen / chosen.sum(axis=1, keepdims=True)


def sigmoid_route(logits, correction, topk, groups, used, renormalized, scale):
    """ids and gates of sigmoid routing (DeepSeek-V3), token by token."""
    ids, gates = [], []
    for z in logits:
        score = 1 / (1 + np.exp(-z))
        ranked = score + correction
        each = len(z) // groups
        worth = [np.sort(ranked[g * each:(g + 1) * each])[-2:].sum() for g in range(groups)]
        best = sorted(range(groups), key=lambda g: (-worth[g], g))[:used]
        allowed = [r for r in range(len(z)) if r // each in best]
        chosen = sorted(allowed, key=lambda r: (-ranked[r], r))[:topk]
        gate = score[chosen] / (score[chosen].sum() if renormalized else 1)
        ids.append(chosen)
        gates.append(scale * gate)
    return np.array(ids), np.array(gates)


def kept_choices(ids, experts, slots):
    """Which choices [N, K] find room: all first choices in token order, then all second ones."""
    room, kept = [slots] * experts, np.zeros(ids.shape, bool)
    for k in range(ids.shape[1]):
        for n in range(ids.shape[0]):
            e = ids[n, k]
            if e < experts and room[e] > 0:
                room[e] -= 1
                kept[n, k] = True
    return kept


def mix_experts(weights, x, ids, gates, kept):
    """sum over kept choices k of gates[n, k] f_ids[n, k](x[n])."""
    y = np.zeros_like(x)
    for n in range(len(x)):
        for k in range(ids.shape[1]):
            if kept[n, k]:
                one = {name: leaf[ids[n, k]] for name, leaf in weights.items()}
                y[n] += gates[n, k] * ffn(x[n], **one)
    return y


def moe(cfg, p, x, valid, capacity):
    """One MoE layer without aliases on x [N, D]; returns y and a dict of what it did."""
    logits = x @ p['router']['kernel'].T
    probs = softmax(logits)
    ids = choose(probs, cfg.topk)
    gates = gates_of(probs, ids, cfg.gate)
    experts = len(p['experts']['up'])
    slots = len(x)
    if capacity is not None:
        share = math.ceil(capacity * len(x) * cfg.topk / experts)
        slots = min(len(x), max(cfg.min_capacity, share))
    kept = kept_choices(np.where(valid[:, None], ids, experts), experts, slots)
    y = mix_experts(p['experts'], x, ids, gates, kept)
    return y, {'ids': ids, 'gates': gates, 'logits': logits, 'probs': probs, 'kept': kept,
               'inputs': x}


def attend(cfg, p, x, segments):
    length, width = x.shape
    q, k, v = (x @ p[name] + p[f'{name}_bias'] for name in 'qkv')
    size = width // cfg.heads
    out = np.zeros_like(x)
    for h in range(cfg.heads):
        part = slice(h * size, (h + 1) * size)
        for t in range(length):
            past = [s for s in range(t + 1) if segments[s] == segments[t]]
            scores = np.array([q[t, part] @ k[s, part] for s in past]) / math.sqrt(size)
            out[t, part] = softmax(scores) @ v[past][:, part]
    return out @ p['out'] + p['out_bias']


def places(segments):
    """Position of each token in its own segment [T]."""
    found = []
    for t, segment in enumerate(segments):
        found.append(found[-1] + 1 if t and segments[t - 1] == segment else 0)
    return np.array(found)


def forward(cfg, params, tokens, segments, capacity=None):
    """logits [B, T, V] and {layer: what its experts did}, in float64."""
    p = float64(params)
    x = np.stack([p['embed']['tokens'][row] + p['embed']['positions'][places(seg)]
                  for row, seg in zip(tokens, segments, strict=True)])
    valid, did = segments.ravel() > 0, {}
    for i in range(cfg.layers):
        layer = p[f'layer_{i}']
        h = norm(x, layer['norm_attn'])
        x = x + np.stack([attend(cfg, layer['attn'], *row)
                          for row in zip(h, segments, strict=True)])
        h = norm(x, layer['norm_ffn']).reshape(-1, cfg.width)
        if cfg.experts[i]:
            y, did[i] = moe(cfg, layer['moe'], h, valid, capacity)
        else:
            y = ffn(h, **layer['mlp'])
        before, x = x, x + y.reshape(x.shape)
        if cfg.experts[i]:
            did[i]['streams'] = before.reshape(y.shape), x.reshape(y.shape)
    return norm(x, p['norm_final']) @ p['embed']['tokens'].T, did


def float64(tree):
    if isinstance(tree, dict):
        return {key: float64(value) for key, value in tree.items()}
    return np.asarray(tree).astype(np.float64)
