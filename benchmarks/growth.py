"""Time by the number of experts, tokens, layers and experts per token, against proportional growth.

The forward pass of one layer, ours and torch's grouped matrix product, and scoring with a whole
model, at sizes along one axis while the others stay. 'over proportional' is the time over that of
the least size, over how much more a token's experts then have to do: nothing more for more experts,
in proportion to tokens, layers and experts per token. All sizes of an axis are run in turn in every
round. `python -m benchmarks --draw FILE.jsonl DIR` draws what this has written.

Letters: T tokens, D width, F hidden width, E experts, K experts per token, L layers.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks import layer_case, torch_layer
from benchmarks.growth_lines import FLAT, LINES, OVER
from benchmarks.layer_case import Case
from benchmarks.measured import Measured, Results, median, ratios, rounds
from moe_jax import Config, init, score

AXES = {
    'experts': (8, 16, 32, 64, 128, 256),
    'tokens': (256, 1024, 4096, 16384),
    'experts per token': (1, 2, 4, 8),
    'layers': (2, 4, 8, 16),
}
SMALL = {'experts': (8, 16), 'tokens': (256, 512), 'experts per token': (1, 2), 'layers': (2, 4)}
START = {'experts': 32, 'tokens': 4096, 'experts per token': 1, 'layers': 4}
START_SMALL = {'experts': 8, 'tokens': 256, 'experts per token': 1, 'layers': 2}
LAYER, MODEL = (256, 1024), (256, 512)  # D and F
LENGTH, VOCAB, ROUNDS = 256, 2048, 7


def run(args: argparse.Namespace) -> Results:
    """One axis after the other."""
    torch_layer.use_all_cores()
    start = START_SMALL if args.small else START
    for axis, counts in (SMALL if args.small else AXES).items():
        fixed = ', '.join(f'{value} {name}' for name, value in start.items() if name != axis)
        yield (f'{axis} {counts[0]} to {counts[-1]}; {fixed}; GELU, layer D={LAYER[0]} '
               f'F={LAYER[1]}, model D={MODEL[0]} F={MODEL[1]} V={VOCAB}, rows of {LENGTH} tokens, '
               f'float32, dropless, torch {torch_layer.version()}'), measure(
                   axis, counts, start, args)


def measure(axis: str, counts: tuple[int, ...], start: dict[str, int], args: argparse.Namespace
            ) -> list[Measured]:
    """Milliseconds and growth of every line of an axis."""
    lines = ('model',) if axis == 'layers' else LINES
    runs = {(line, count): RUNS[line](start | {axis: count}, args.seed)
            for count in counts for line in lines}
    taken = dict(zip(runs, rounds(args.rounds or (2 if args.small else ROUNDS),
                                  list(runs.values())), strict=True))
    results = []
    for (line, count), times in taken.items():
        name = f'{line}, {axis} {count}'
        results.append(median(name, [1000 * t for t in times], 'ms'))
        if count > counts[0]:
            work = 1 if axis == FLAT else count / counts[0]
            growth = [ratio / work for ratio in ratios(times, taken[line, counts[0]])]
            results.append(median(f'{name}, {OVER}', growth, 'x'))
    return results


def layer(sizes: dict[str, int], seed: int) -> Callable[[], jax.Array]:
    """Our layer, compiled, on its inputs."""
    case = case_of(sizes)
    return partial(jax.jit(layer_case.forward(case)), *layer_case.inputs(case, seed))


def torch_one(sizes: dict[str, int], seed: int) -> Callable[[], Any]:
    """The same in torch."""
    case = case_of(sizes)
    return torch_layer.forward('grouped_mm', case, layer_case.inputs(case, seed))


def model(sizes: dict[str, int], seed: int) -> Callable[[], jax.Array]:
    """Scoring random tokens with a model whose layers all have experts."""
    width, hidden = MODEL
    cfg = Config(vocab=VOCAB, positions=LENGTH, width=width, heads=4, mlp_hidden=8,
                 expert_hidden=hidden, experts=(sizes['experts'],) * sizes['layers'],
                 topk=sizes['experts per token'], ffn_bias=False, capacity_eval=None)
    tokens = np.random.default_rng(seed).integers(
        0, VOCAB, (sizes['tokens'] // LENGTH, LENGTH)).astype(np.int32)
    return partial(score, cfg, init(cfg, jax.random.key(seed)), tokens, np.ones_like(tokens, bool))


def case_of(sizes: dict[str, int]) -> Case:
    """The layer of some sizes."""
    return Case(sizes['tokens'], *LAYER, sizes['experts'], sizes['experts per token'], False,
                'float32')


RUNS = dict(zip(LINES, (layer, torch_one, model), strict=True))
