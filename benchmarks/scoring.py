"""Log-probabilities of tokens against transformers on the same weights, on CPU.

'all positions': `moe_jax.score` beside logits of all positions, log_softmax and gather. 'last':
both make logits of the last positions alone, ours by `score_continuations`, transformers' by its
logits_to_keep. 'less work': our last positions over all of transformers', which is what a program
that takes full logits pays. The rival is transformers' faster way to run experts, in the median,
with its sdpa attention. In bfloat16 routing differs where two experts are nearly as good, so both
are held against our float32 pass over the same rounded weights.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moe_jax
from benchmarks import peer_model
from benchmarks.measured import Measured, Results, best, compared, median, rounds
from benchmarks.peer_model import WAYS, Both, Sizes

ROWS, KEEP, ROUNDS = 8, 16, 9
ALL = {('mixtral', 'float32'): 1.4, ('mixtral', 'bfloat16'): 1.0, ('olmoe', 'bfloat16'): 1.0}
APART = 1e-3  # nats, float32
NOISE = 1.5  # of ours over that of transformers, bfloat16


def run(args: argparse.Namespace) -> Results:
    """Two models in two precisions."""
    for sizes in (peer_model.mixtral(args.small), peer_model.olmoe(args.small)):
        for dtype in ('float32', 'bfloat16'):
            with peer_model.opened(sizes, dtype, args.seed) as both:
                results = measure(sizes, both, args)
            yield (f'{sizes} {dtype}, {ROWS} rows of {sizes.positions} tokens, '
                   f'{peer_model.versions()}'), results


def measure(sizes: Sizes, both: Both, args: argparse.Namespace) -> list[Measured]:
    """Differences, then times of all positions and of the last."""
    tokens = np.random.default_rng(args.seed).integers(0, sizes.vocab, (ROWS, sizes.positions))
    runs = passes(both, tokens.astype(np.int32))
    results = differences(both, tokens, runs)
    taken = rounds(args.rounds or (2 if args.small else ROUNDS), list(runs.values()))
    times = {name: [1000 * t for t in each] for name, each in zip(runs, taken, strict=True)}
    target = ALL.get((sizes.family, both.cfg.dtype))
    rival = {what: best({name: each for name, each in times.items()
                         if name.startswith(f'transformers {what}')}) for what in ('all', 'last')}
    results += compared('all positions, transformers over ours', times[rival['all']],
                      times['ours all'], None if target is None else ('>=', target))
    results += compared(f'last {KEEP}, transformers over ours', times[rival['last']],
                      times['ours last'])
    results += compared(f'less work: all of transformers over our last {KEEP}', times[rival['all']],
                      times['ours last'])
    return results + [median(name, each, 'ms') for name, each in times.items()]


def passes(both: Both, tokens: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Ours and transformers', each with all positions and the last."""
    requests = [(row[:-KEEP].tolist(), row[-KEEP:].tolist()) for row in tokens]
    runs = {'ours all': lambda: np.asarray(moe_jax.score(both.cfg, both.params, tokens)),
            'ours last': lambda: moe_jax.score_continuations(
                both.cfg, both.params, requests, batch=ROWS).log_prob}
    for way in WAYS:
        inputs = both.peer, way, tokens
        runs |= {f'transformers all, {way}': partial(peer_model.every, *inputs),
                 f'transformers last, {way}': partial(peer_model.last, *inputs, KEEP)}
    return runs


def differences(both: Both, tokens: np.ndarray, runs: dict[str, Callable[[], Any]]
                ) -> list[Measured]:
    """How far ours and transformers' are apart: by the largest in float32, in bfloat16 by noise."""
    ours, theirs = runs['ours all'](), runs[f'transformers all, {WAYS[0]}']()
    if both.cfg.dtype == 'float32':
        last = np.abs(runs['ours last']() - theirs[:, -KEEP:].sum(axis=1)).max() / KEEP
        return [Measured('largest difference of a log-probability', float(
                    np.abs(ours - theirs).max()), 'nats', ('<=', APART)),
                Measured(f'largest difference of the mean of {KEEP}', float(last), 'nats',
                         ('<=', APART))]
    exact = np.asarray(moe_jax.score(
        both.cfg.replace(dtype='float32'),
        jax.tree.map(lambda leaf: leaf.astype(jnp.float32), both.params), tokens))
    noise = [float(np.sqrt(np.square(a - exact).mean())) for a in (ours, theirs)]
    return [Measured('noise of ours over that of transformers', noise[0] / noise[1], 'x',
                     ('<=', NOISE)),
            *(Measured(f'root mean square from float32, {name}', value, 'nats')
              for name, value in zip(('ours', 'transformers'), noise, strict=True))]
