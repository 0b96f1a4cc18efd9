"""How long `moe_jax.observe` takes with its default set, against a plain scoring pass.

Both run over the same batches, in turn in every round. The vocabulary is small, so that the head's
share of the scoring pass is that of released models (about a tenth of the active weights); observe
has no head.

Letters: L layers, D width, F hidden width, E experts, K experts per token, B rows, T tokens a row.
"""

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from benchmarks.measured import Measured, Results, median, ratios, rounds
from moe_jax import Config, init, observe, score

# L, D, F, E, K, B, T
SHAPES = {
    'full': [(6, 256, 512, 16, 2, 8, 256), (4, 512, 1024, 32, 4, 8, 256)],
    'small': [(2, 64, 128, 8, 2, 4, 64)],
}
BATCHES, ROUNDS, VOCAB = 4, 7, 2048


def run(args: argparse.Namespace) -> Results:
    """Both times and their ratio for each shape."""
    found, shapes = [], SHAPES['small' if args.small else 'full']
    for shape in shapes:
        found += measure(*shape)
    yield (f'{BATCHES} batches of B x T tokens, SwiGLU, V={VOCAB}, 4 heads, float32, dropless',
           found)


def measure(
    layers: int, width: int, hidden: int, experts: int, topk: int, rows: int, length: int
) -> list[Measured]:
    """Time both passes over the same batches."""
    cfg = Config(
        vocab=VOCAB, positions=length, width=width, heads=4, mlp_hidden=8, expert_hidden=hidden,
        experts=(experts,) * layers, topk=topk, gate='softmax_topk_renorm', ffn='swiglu',
        ffn_bias=False, capacity_eval=None,
    )
    params = init(cfg, jax.random.key(0))
    rng = np.random.default_rng(0)
    batches = [{'tokens': rng.integers(0, VOCAB, (rows, length)).astype(np.int32),
                'mask': np.ones((rows, length), bool)} for _ in range(BATCHES)]
    passes = [partial(observe, cfg, params, batches), partial(scored, cfg, params, batches)]
    observing, scoring = rounds(ROUNDS, passes)
    shape = f'L={layers} D={width} F={hidden} E={experts} K={topk} B={rows} T={length}'
    return [
        median(f'{shape}: observe', observing),
        median(f'{shape}: score', scoring),
        median(f'{shape}: observe over score', ratios(observing, scoring), 'x',
               ('<=', 1.3)),
    ]


def scored(cfg: Config, params: Any, batches: list[Mapping[str, Any]]) -> list[np.ndarray]:
    """The log-probabilities of all batches, on the host."""
    return [np.asarray(score(cfg, params, b['tokens'], b['mask'])) for b in batches]

