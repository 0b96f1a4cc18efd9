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
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measured import Measured, Results, median, ratios, rounds
from moe_jax import cost, experts, ffn, grouped, grouped_choice
from moe_jax.grouped_ways import implementation
from moe_jax.presets import PRESETS

try:
    from benchmarks import torch_layer
except ImportError:  # torch is only a rival here
    torch_layer = None

ROUNDS, LATENCY_ROUNDS = 12, 20
SECONDS = 0.02  # of calls in a row that are timed together
FORWARD, BOTH = ('>=', 0.6), ('>=', 0.5)
SKEW = 0.3  # standard deviation of the experts' log popularity
COUNTS = (8, 16, 32, 64, 128)


class Case(NamedTuple):
    """A layer, and whether its share of dense is a target."""

    tokens: int
    width: int
    hidden: int
    experts: int
    topk: int
    gated: bool
    target: bool = False

    @property
    def flops(self) -> int:
        """Of the matrix products of a forward pass."""
        return 2 * self.tokens * self.topk * self.width * self.hidden * (3 if self.gated else 2)


CASES = {
    'olmoe': Case(16384, 2048, 1024, 64, 8, True, target=True),
    'qwen3': Case(16384, 2048, 768, 128, 8, True),
    'switch 8': Case(16384, 1024, 4096, 8, 1, False),
    'switch 32': Case(16384, 1024, 4096, 32, 1, False),
    'switch 128': Case(16384, 1024, 4096, 128, 1, False),
}
SMALL = {'small': Case(256, 64, 128, 8, 2, True)}


def check(args: argparse.Namespace) -> Results:
    """What the ways of the grouped product that this process uses are off, in bfloat16."""
    yield 'value and both gradients, bfloat16 against float64', [
        Measured(f'{way}, largest relative error',
                 grouped_choice.trial(implementation(way))[0], '', ('<=', 4e-3))
        for way in grouped.choose()]


def layers(args: argparse.Namespace) -> Results:
    """The layers asked for."""
    for name, case in (SMALL if args.small else CASES).items():
        yield (f'{name}: T={case.tokens} D={case.width} F={case.hidden} E={case.experts} '
               f'K={case.topk} {"SwiGLU" if case.gated else "GELU"} bfloat16, '
               f'grouped products by {" or ".join(grouped.choose())}, '
               f'{rivals()}, {flags()}{ROUNDS} rounds'), layer(name, case)


def latencies(args: argparse.Namespace) -> Results:
    """Latency of few and of many tokens."""
    for rows in (1,) if args.small else (1, 16):
        found, settings = latency(rows, args.small)
        yield settings, found


def layer(name: str, case: Case) -> list[Measured]:
    """Times of one case, and its shares of dense."""
    x, ids, gates, weights = inputs(case)
    function = ffn.Ffn(ffn.swiglu if case.gated else ffn.gelu)

    def forward(weights, x, gates):
        return experts.dropless(function, weights, x, ids, gates)[0]

    def both(weights, x, gates):
        def loss(*args):
            return jnp.square(forward(*args).astype(jnp.float32)).mean()

        return jax.grad(loss, argnums=(0, 1, 2))(weights, x, gates)

    shape = (case.tokens * case.topk, case.width, case.hidden)
    found = []
    for what, run, times, target in (('forward', forward, 1, FORWARD),
                                     ('with gradients', both, 3, BOTH)):
        runs = compiled({'ours': (run, (weights, x, gates)), 'jax': dense(shape, case.gated)})
        runs['jax'] = repeated(runs['jax'], times)
        if torch_layer is not None:
            runs['torch'] = repeated(torch_layer.dense(shape, case.gated), times)
            make = torch_layer.forward if what == 'forward' else torch_layer.both
            runs['torch layer'] = make(*map(np.asarray, (ids, gates)), case.experts, *shape[1:],
                                       case.gated)
        found += shares(f'{name} {what}', runs, case.flops * times, target if case.target else None)
    return found


def shares(
    what: str, runs: dict[str, Callable[[], Any]], flops: int, target: Any
) -> list[Measured]:
    """Milliseconds of ours, of torch's layer and of the faster dense; and what share ours has."""
    calls = {name: max(1, math.ceil(SECONDS / once(run, name))) for name, run in runs.items()}
    taken = rounds(ROUNDS, [repeated(run, calls[name], name) for name, run in runs.items()])
    each = {name: [1000 * t / calls[name] for t in times]
            for name, times in zip(runs, taken, strict=True)}
    best = min((name for name in ('jax', 'torch') if name in each),
               key=lambda name: statistics.median(each[name]))
    rate = [flops / 1e9 / ms for ms in each[best]]
    found = [median(f'{what}, of dense', ratios(each[best], each['ours']), 'x', target),
             median(f'{what}, ours', each['ours'], 'ms'),
             median(f'{what}, dense by {best}', each[best], 'ms'),
             median(f'{what}, dense by {best}', rate, 'TFLOP/s')]
    if 'torch layer' in each:
        found += [median(f'{what}, torch grouped_mm', each['torch layer'], 'ms'),
                  median(f'{what}, torch grouped_mm over ours',
                         ratios(each['torch layer'], each['ours']), 'x')]
    return found


def inputs(case: Case) -> tuple[jax.Array, ...]:
    """x [T, D], ids and gates [T, K] of a router with popular and rare experts, and weights."""
    rng = np.random.default_rng(0)
    score = rng.gumbel(size=(case.tokens, case.experts)) + SKEW * rng.normal(size=case.experts)
    ids = np.argsort(-score, axis=1)[:, :case.topk].astype(np.int32)
    gates = np.full(ids.shape, 1 / case.topk, np.float32)
    leaves = {'gate': (case.width, case.hidden)} if case.gated else {}
    leaves |= {'up': (case.width, case.hidden), 'down': (case.hidden, case.width)}
    keys = dict(zip(leaves, jax.random.split(jax.random.key(0), len(leaves)), strict=True))
    weights = {name: normal(keys[name], (case.experts, *shape)) / jnp.bfloat16(shape[0] ** 0.5)
               for name, shape in leaves.items()}
    x = normal(jax.random.key(1), (case.tokens, case.width))
    return x, jnp.asarray(ids), jnp.asarray(gates), weights


def dense(shape: tuple[int, int, int], gated: bool) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The products of one expert on all S rows, and random arguments of them."""
    s, d, f = shape
    sides = [((s, d), (d, f))] * (2 if gated else 1) + [((s, f), (f, d))]

    def run(*pairs):
        return [jnp.dot(a, b, preferred_element_type=jnp.float32).astype(a.dtype) for a, b in pairs]

    keys = jax.random.split(jax.random.key(2), (len(sides), 2))
    return run, tuple((normal(keys[i, 0], left), normal(keys[i, 1], right))
                      for i, (left, right) in enumerate(sides))


def latency(rows: int, small: bool) -> tuple[list[Measured], str]:
    """Forward milliseconds by number of experts, and how many times those of the fewest."""
    length = 64 if small else 1024
    name = 'tiny' if small else 'gpt2_354m'
    configs = [PRESETS[name](e).replace(experts=(e, 0), capacity_eval=None, dtype='bfloat16')
               for e in COUNTS]
    taken = cost.forward_milliseconds(configs, (rows, length), 2 if small else LATENCY_ROUNDS,
                                      stored='bfloat16')
    found = []
    for count, times in zip(COUNTS, taken, strict=True):
        found.append(median(f'E={count}, {rows * length} tokens', times, 'ms'))
        if count > COUNTS[0]:
            found.append(median(f'E={count} over E={COUNTS[0]}, {rows * length} tokens',
                                ratios(times, taken[0]), 'x'))
    return found, (f'{name} with 2 layers, 1 of experts, dropless, '
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
        found = run()
        if name.startswith('torch'):
            torch_layer.wait()
        return found

    return several


def once(run: Callable[[], Any], name: str) -> float:
    """Seconds of one call, after one that does not count."""
    return rounds(1, [repeated(run, 1, name)])[0][0]


def normal(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Random bfloat16 numbers."""
    return jax.jit(partial(jax.random.normal, shape=tuple(shape), dtype=jnp.bfloat16))(key)


def flags() -> str:
    """XLA's flags, if any are set."""
    found = os.environ.get('XLA_FLAGS')
    return f'XLA_FLAGS={found}, ' if found else ''


def rivals() -> str:
    """The version of torch, if it is here."""
    return 'no torch' if torch_layer is None else f'torch {torch_layer.version()}'


