"""One MoE layer on CPU against torch and against dense products, and by the number of experts.

`experts.dropless`, sorting and combining included, forward and forward with all gradients, beside
torch's grouped matrix product and a loop over experts with an array for each (the faster in the
median is the rival) and the dense products that its rows would need of one expert (the faster of
jax, summed in float32, and torch; three times as many with gradients). 'of dense' is the time of
the dense products over ours. What ours and torch compute is held against each other. Where native
kernels are at hand, the layer by the loop that is used without them runs too.

Letters: T tokens, D width, F hidden width, E experts, K experts per token.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from benchmarks import layer_case, torch_layer
from benchmarks.layer_case import Arrays, Case
from benchmarks.measured import (
    Measured,
    Results,
    apart,
    best,
    compared,
    median,
    ratios,
    rounds,
)
from moe_jax.kernels import target, trial

CASES = {
    'E8': Case(4096, 128, 512, 8, 1, False, 'float32'),
    'E32': Case(4096, 128, 512, 32, 1, False, 'float32'),
    'E128': Case(4096, 128, 512, 128, 1, False, 'float32'),
    'few rows': Case(512, 128, 512, 128, 1, False, 'float32'),
    'wide': Case(2048, 768, 3072, 32, 1, False, 'float32'),
    'mixtral': Case(2048, 1024, 3584, 8, 2, True, 'float32'),
    'olmoe': Case(4096, 512, 1024, 64, 8, True, 'float32'),
    'olmoe, half': Case(4096, 512, 1024, 64, 8, True, 'bfloat16'),
}
SMALL = {'small': Case(512, 64, 128, 8, 2, True, 'float32'),
         'small, half': Case(512, 64, 128, 8, 2, True, 'bfloat16')}
FORWARD = {'mixtral': 1.1, 'E128': 1.0, 'wide': 1.0, 'olmoe, half': 1.0}  # of torch over ours
APART = {'float32': 1e-5, 'bfloat16': 4e-2}
MANY = Case(16384, 256, 1024, 128, 1, False, 'float32')
FEW_EXPERTS, FLAT = 8, 1.2
ROUNDS = {'forward': 15, 'with gradients': 7}
RIVALS, LOOP = ('grouped_mm', 'per expert'), 'by the loop'


def run(args: argparse.Namespace) -> Results:
    """Every case, then a layer of many experts over one of few."""
    torch_layer.use_all_cores()
    for name, case in (SMALL if args.small else CASES).items():
        yield (f'{name}: {case}, torch {torch_layer.version()}',
               measure(case, FORWARD.get(name), args))
    case = MANY._replace(tokens=512, experts=32) if args.small else MANY
    yield f'{case} over E={FEW_EXPERTS}', [by_experts(case, args)]


def measure(case: Case, target: float | None, args: argparse.Namespace) -> list[Measured]:
    """How far ours and torch's are apart, then times and ratios of both passes."""
    arrays = layer_case.inputs(case, args.seed)
    dense, pairs = layer_case.dense(case)
    dense = {'jax': partial(jax.jit(dense), *pairs), 'torch': torch_layer.dense(case)}
    results = []
    for what, ours, theirs, factor in (
            ('forward', layer_case.forward, torch_layer.forward, 1),
            ('with gradients', layer_case.both, torch_layer.both, 3)):
        runs = {'ours': partial(jax.jit(ours(case)), *arrays)} | by_loop(ours(case), arrays)
        runs |= {way: theirs(way, case, arrays) for way in RIVALS}
        error = difference(case, what, runs)
        results.append(Measured(f'{what}, largest relative difference to torch', error, '',
                              ('<=', APART[case.dtype])))
        count = args.rounds or (2 if args.small else ROUNDS[what])
        results += summary(what, times(runs | dense, count, factor),
                           target if factor == 1 else None)
    return results


def by_loop(layer: Callable[..., Any], arrays: Arrays) -> dict[str, Callable[[], Any]]:
    """The layer by the loop, compiled already, or nothing where that is what is used anyway."""
    if trial.candidates() == ('loop',):
        return {}
    run, before = partial(jax.jit(layer), *arrays), os.environ.get(target.VARIABLE)
    os.environ[target.VARIABLE] = 'loop'
    try:
        jax.block_until_ready(run())
    finally:
        os.environ.pop(target.VARIABLE)
        if before is not None:
            os.environ[target.VARIABLE] = before
    return {LOOP: run}


def difference(case: Case, what: str, runs: dict[str, Callable[[], Any]]) -> float:
    """The largest of all rivals' and, with gradients, of all leaves."""
    ours, worst = runs['ours'](), 0.0
    for way in RIVALS:
        theirs = runs[way]()
        theirs = torch_layer.numpy(theirs) if what == 'forward' else torch_layer.as_ours(
            case, theirs)
        worst = max(worst, *map(apart, jax.tree.leaves(ours), jax.tree.leaves(theirs)))
    return worst


def times(runs: dict[str, Callable[[], Any]], count: int, factor: int) -> dict[str, list[float]]:
    """Milliseconds of each run in each round; those of dense products times `factor`."""
    taken = dict(zip(runs, rounds(count, list(runs.values())), strict=True))
    return {name: [1000 * t * (factor if name in ('jax', 'torch') else 1) for t in each]
            for name, each in taken.items()}


def summary(what: str, each: dict[str, Sequence[float]], target: float | None) -> list[Measured]:
    """The ratios to the faster rival and to the faster dense products, and all milliseconds."""
    rival = best({way: each[way] for way in RIVALS})
    dense = best({name: each[name] for name in ('jax', 'torch')})
    return [
        *compared(f'{what}, the faster of torch over ours', each[rival], each['ours'],
                  None if target is None else ('>=', target)),
        median(f'{what}, of dense', ratios(each[dense], each['ours']), 'x'),
        median(f'{what}, ours', each['ours'], 'ms'),
        *([median(f'{what}, {LOOP}', each[LOOP], 'ms'),
           *compared(f'{what}, {LOOP} over ours', each[LOOP], each['ours'])]
          if LOOP in each else ()),
        *(median(f'{what}, torch {way}', each[way], 'ms') for way in RIVALS),
        median(f'{what}, dense by {dense}', each[dense], 'ms'),
    ]


def by_experts(case: Case, args: argparse.Namespace) -> Measured:
    """The time of a layer of many experts over that of few, with the same work for each token."""
    runs = [forward(one, args.seed) for one in (case, case._replace(experts=FEW_EXPERTS))]
    many, few = rounds(args.rounds or (2 if args.small else ROUNDS['forward']), runs)
    return median(f'forward, {case.experts} experts over {FEW_EXPERTS}', ratios(many, few), 'x',
                  ('<=', FLAT))


def forward(case: Case, seed: int) -> Callable[[], jax.Array]:
    """The compiled layer on its inputs."""
    arrays: Arrays = layer_case.inputs(case, seed)
    return partial(jax.jit(layer_case.forward(case)), *arrays)
