"""A MoE layer against dense products of the same FLOPs and torch, and latency by expert count.

'layer' times `experts.dropless`, sorting and combining included, forward and forward with all
gradients, beside the dense products that its rows need and would need of one expert (the faster of
jax and torch in the median) and, where torch is there, a layer of torch's `grouped_mm`. Everything
runs in turn in every round. 'of dense' is the time of the dense products over that of the layer.

'check' says how far the products are from float64. 'latency' is `cost.forward_milliseconds`,
experts stored in bfloat16, of models like gpt2_354m with 2 of its 24 layers, one of them of
experts.

Letters: T tokens, D width, F hidden width, E experts, K experts per token, S = T K rows.
"""

import argparse
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax

from benchmarks import layer_case
from benchmarks.layer_case import Case
from benchmarks.measured import Measured, Results, best, median, ratios, rounds
from moe_jax.config.presets import PRESETS
from moe_jax.kernels import trial
from moe_jax.kernels.table import backend
from moe_jax.study.clock import forward_milliseconds

try:
    from benchmarks import torch_layer
except ImportError:  # torch is only a rival here
    torch_layer = None

ROUNDS, LATENCY_ROUNDS = 12, 20
SECONDS = 0.02  # of calls in a row that are timed together
FORWARD, BOTH = ('>=', 0.6), ('>=', 0.5)
COUNTS = (8, 16, 32, 64, 128)
CASES = {
    'olmoe': Case(16384, 2048, 1024, 64, 8, True),
    'qwen3': Case(16384, 2048, 768, 128, 8, True),
    'switch 8': Case(16384, 1024, 4096, 8, 1, False),
    'switch 32': Case(16384, 1024, 4096, 32, 1, False),
    'switch 128': Case(16384, 1024, 4096, 128, 1, False),
}
SMALL = {'small': Case(256, 64, 128, 8, 2, True)}
TARGETS = ('olmoe',)


def check(args: argparse.Namespace) -> Results:
    """The errors of the backends of the grouped matmul that work here, in bfloat16."""
    yield 'value and both gradients, bfloat16 against float64', [
        Measured(f'{name}, largest relative error',
                 trial.trial(backend(name))[0], '', ('<=', 4e-3))
        for name in trial.candidates()]


def layers(args: argparse.Namespace) -> Results:
    """The layers asked for."""
    for name, case in (SMALL if args.small else CASES).items():
        yield (f'{name}: {case}, grouped matmul by {" or ".join(trial.candidates())}, '
               f'{rivals()}, {flags()}{args.rounds or ROUNDS} rounds'), layer(name, case, args)


def latencies(args: argparse.Namespace) -> Results:
    """Latency of few and of many tokens."""
    for rows in (1,) if args.small else (1, 16):
        results, settings = latency(rows, args)
        yield settings, results


def layer(name: str, case: Case, args: argparse.Namespace) -> list[Measured]:
    """Times of one case, and its shares of dense."""
    arrays, results = layer_case.inputs(case, args.seed), []
    for what, ours, times, target in (('forward', layer_case.forward, 1, FORWARD),
                                      ('with gradients', layer_case.both, 3, BOTH)):
        runs = compiled({'ours': (ours(case), arrays), 'jax': layer_case.dense(case)})
        runs['jax'] = repeated(runs['jax'], times)
        if torch_layer is not None:
            runs['torch'] = repeated(torch_layer.dense(case), times)
            make = torch_layer.forward if what == 'forward' else torch_layer.both
            runs['torch layer'] = make('grouped_mm', case, arrays)
        results += shares(f'{name} {what}', runs, case.flops * times,
                        target if name in TARGETS else None, args.rounds or ROUNDS)
    return results


def shares(
    what: str, runs: dict[str, Callable[[], Any]], flops: int, target: Any, count: int
) -> list[Measured]:
    """Milliseconds of ours, of torch's layer and of the faster dense; and what share ours has."""
    calls = {name: max(1, math.ceil(SECONDS / once(run, name))) for name, run in runs.items()}
    taken = rounds(count, [repeated(run, calls[name], name) for name, run in runs.items()])
    each = {name: [1000 * t / calls[name] for t in times]
            for name, times in zip(runs, taken, strict=True)}
    dense = best({name: each[name] for name in ('jax', 'torch') if name in each})
    rate = [flops / 1e9 / ms for ms in each[dense]]
    results = [median(f'{what}, of dense', ratios(each[dense], each['ours']), 'x', target),
             median(f'{what}, ours', each['ours'], 'ms'),
             median(f'{what}, dense by {dense}', each[dense], 'ms'),
             median(f'{what}, dense by {dense}', rate, 'TFLOP/s')]
    if 'torch layer' in each:
        results += [median(f'{what}, torch grouped_mm', each['torch layer'], 'ms'),
                  median(f'{what}, torch grouped_mm over ours',
                         ratios(each['torch layer'], each['ours']), 'x')]
    return results


def latency(rows: int, args: argparse.Namespace) -> tuple[list[Measured], str]:
    """Forward milliseconds by number of experts, and how many times those of the fewest."""
    length = 64 if args.small else 1024
    name = 'tiny' if args.small else 'gpt2_354m'
    configs = [PRESETS[name](e).replace(experts=(e, 0), capacity_eval=None, dtype='bfloat16')
               for e in COUNTS]
    count = args.rounds or (2 if args.small else LATENCY_ROUNDS)
    taken = forward_milliseconds(configs, (rows, length), count, stored='bfloat16')
    results = []
    for count, times in zip(COUNTS, taken, strict=True):
        results.append(median(f'E={count}, {rows * length} tokens', times, 'ms'))
        if count > COUNTS[0]:
            results.append(median(f'E={count} over E={COUNTS[0]}, {rows * length} tokens',
                                ratios(times, taken[0]), 'x'))
    return results, (f'{name} with 2 layers, 1 of experts, dropless, '
                   f'[{rows}, {length}] tokens, experts stored in bfloat16, {flags()}'
                   f'{len(taken[0])} rounds')


def compiled(runs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]
             ) -> dict[str, Callable[[], Any]]:
    """Each function of its arguments, compiled, all at the same time."""
    lowered = {name: jax.jit(run).lower(*args) for name, (run, args) in runs.items()}
    with ThreadPoolExecutor() as pool:
        ready = list(pool.map(lambda one: one.compile(), lowered.values()))
    return {name: partial(run, *args)
            for run, (name, (_, args)) in zip(ready, runs.items(), strict=True)}


def repeated(run: Callable[[], Any], times: int, name: str = '') -> Callable[[], Any]:
    """So many calls in a row; what the last one gives. torch is waited for here."""
    def several():
        for _ in range(times - 1):
            run()
        results = run()
        if name.startswith('torch'):
            torch_layer.wait()
        return results

    return several


def once(run: Callable[[], Any], name: str) -> float:
    """Seconds of one call, after one that does not count."""
    return rounds(1, [repeated(run, 1, name)])[0][0]


def flags() -> str:
    """XLA's flags, if any are set."""
    flags = os.environ.get('XLA_FLAGS')
    return f'XLA_FLAGS={flags}, ' if flags else ''


def rivals() -> str:
    """The version of torch, if it is here."""
    return 'no torch' if torch_layer is None else f'torch {torch_layer.version()}'


