"""Every statistic of one MoE layer again, token by token in float64: the oracle of `observe`."""

import numpy as np

from moe_jax.calibration.table import BINS, STATISTICS
from tests.moe_jax import numpy_model


def by_loops(cfg, experts, did, tokens, valid):
    """The default set and `dense`, from what numpy_model.forward did; experts in float64."""
    rows, found = len(experts['up']), empty(cfg, len(experts['up']))
    for n in np.flatnonzero(valid):
        x, p, z, gates, ids = (did[k][n] for k in ('inputs', 'probs', 'logits', 'gates', 'ids'))
        everything = [hidden_and_output(experts, r, x) for r in range(rows)]
        router(cfg, found, p, z, gates, ids)
        found['vocab'][int(tokens[n]), int(ids[0])] = found['vocab'].get(
            (int(tokens[n]), int(ids[0])), 0) + 1
        found['input_sum'] += x
        before, after = (stream[n] for stream in did['streams'])
        found['stream_cosine'] += cosine(before, after)
        for i in range(rows):
            found['dense_output_sum'][i] += everything[i][1]
            for j in range(rows):
                found['dense_cosine'][i, j] += cosine(everything[i][1], everything[j][1])
        kept = [(k, r) for k, r in enumerate(ids) if did['kept'][n, k]]
        for k, r in kept:
            evaluated(found, r, gates[k], x, *everything[r])
            for _, other in kept:
                found['output_cosine'][r, other] += cosine(everything[r][1], everything[other][1])
        for k, r in enumerate(ids):
            found['dropped'][r] += not did['kept'][n, k]
    pairs = sorted(found['vocab'].items())
    found['vocab'] = np.array([[*pair, count] for pair, count in pairs])
    return found


def empty(cfg, rows):
    sizes = {'R': rows, 'D': cfg.width, 'F': cfg.expert_hidden, 'k': cfg.topk - 1, 'B': BINS}
    found = {name: np.zeros([sizes.get(s, s) for s in stat.shape])
             for name, stat in STATISTICS.items()
             if stat.option in ('', 'dense') and name != 'vocab'}
    return found | {'vocab': {}}


def router(cfg, found, p, z, gates, ids):
    found['tokens'] += 1
    found['count_top1'][ids[0]] += 1
    found['top1_gate_sum'][ids[0]] += gates[0]
    for k, r in enumerate(ids):
        found['count'][r] += 1
        found['gate_sum'][r] += gates[k]
        found['chosen_prob_sum'][r] += p[r]
        for other in ids:
            found['together'][r, other] += 1
        if k:
            found['ratio_hist'][k - 1, min(int(gates[k] / gates.max() * BINS), BINS - 1)] += 1
    found['prob_sum'] += p
    found['prob_gram'] += np.outer(p, p)
    found['logit_sum'] += z
    found['logit_gram'] += np.outer(z, z)
    entropy = -(p * np.log(p)).sum()
    found['entropy_sum'] += entropy
    found['entropy_hist'][min(int(entropy / np.log(len(p)) * BINS), BINS - 1)] += 1


def evaluated(found, r, gate, x, h, y):
    size = np.sqrt((y**2).sum())
    for a in range(3):
        for c in range(3):
            found['moments'][a, c, r] += gate**a * size**c
    found['norm_max'][r] = max(found['norm_max'][r], size)
    found['element_max'][r] = max(found['element_max'][r], abs(y).max())
    for name, value in {
        'output_sum': y, 'output_square': y**2, 'gated_output_sum': gate * y,
        'input_square': x**2, 'gated_input_square': (gate * x)**2,
        'hidden_sum': h, 'hidden_square': h**2, 'gated_hidden_square': (gate * h)**2,
    }.items():
        found[name][r] += value


def hidden_and_output(experts, r, x):
    h = numpy_model.gelu(x @ experts['up'][r] + experts['up_bias'][r])
    return h, h @ experts['down'][r] + experts['down_bias'][r]


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))
