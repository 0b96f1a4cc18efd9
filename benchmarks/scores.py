"""How long methods that rank experts take to plan a large model from statistics on disk.

Statistics of the model's true shapes are written as `moe_jax.observe` writes them, read back (that
time is by itself), and every method plans from them in turn, round by round. Weights: 48 such
layers of experts would be 58 GB in bfloat16, so all layers point to the arrays of one, which is
read 48 times; routers are their own. Methods that read weights depend on that size and are timed
once, with the bytes they read in a second; the others read no weight.

`diep` is left out: it learns its scores by gradient steps on a reservoir, one layer by itself.

Letters: E experts, D width, F hidden width, L layers.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import prune
from benchmarks.measured import Measured, Results, median, rounds, seconds
from moe_jax import Config, Stats
from moe_jax.base.tree import count_bytes
from moe_jax.calibration.table import BINS, STATISTICS, Statistic
from moe_jax.model.fingerprint import fingerprint
from prune.catalog import registry

SIZES = {'full': (48, 128, 2048, 768), 'small': (4, 16, 64, 32)}
ROUNDS = 5
WEIGHTS = ('aimer', 'expert_norm')  # read all experts
TOKENS, VOCAB = 1_000_000, 1000


def run(args: argparse.Namespace) -> Results:
    """Seconds to load, and to plan with each method."""
    layers, experts, width, hidden = SIZES['small' if args.small else 'full']
    cfg = Config(
        vocab=8, positions=8, width=width, heads=1, mlp_hidden=8, expert_hidden=hidden,
        experts=(experts,) * layers, topk=8, gate='softmax_topk_renorm', ffn='swiglu',
        ffn_bias=False,
    )
    rng = np.random.default_rng(args.seed)
    shared = one_layer(cfg, rng)
    params, before = model(cfg, shared, rng), model(cfg, shared, rng)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'stats.npz'
        made(cfg, params, args.seed + 1).save(path)
        size, read = path.stat().st_size, []
        loading = seconds(lambda: read.append(Stats.load(path)))
    results = [Measured(f'read {size / 1e6:,.0f} MB of statistics', loading)]
    results += measure(cfg, params, before, read[0], args.rounds or ROUNDS)
    settings = (f'L={layers}, E={experts} (half stay), top 8, D={width}, F={hidden}; experts in '
                f'bfloat16, {total(params) / 1e9:.1f} GB, every layer reads the arrays of one')
    yield settings, results


def measure(
    cfg: Config, params: Any, before: Any, stats: Stats, count: int
) -> list[Measured]:
    """Seconds of each method that ranks, from statistics in memory."""
    names = [row.name for row in prune.methods() if registry.method(row.name).form == 'scores'
             and not any(need.startswith('sample_') for need in row.needs)]
    options = {'router_change': {'before': before}}
    plans = {name: partial(prune.plan, name, stats, params, cfg, experts=max(cfg.experts) // 2,
                           **options.get(name, {})) for name in names}
    quick = [name for name in names if name not in WEIGHTS]
    times = rounds(count, [plans[name] for name in quick])
    results = [median(f'plan {name}', one, 's', ('<=', 1.0))
             for name, one in zip(quick, times, strict=True)]
    for name in WEIGHTS:
        taken = seconds(plans[name])
        rate = total(params) / taken / 1e9
        results.append(Measured(f'plan {name}, which reads all experts', taken))
        results.append(Measured(f'weights that {name} reads', rate, 'GB/s'))
    return results


def total(params: Any) -> int:
    """Bytes of the experts of all layers."""
    return sum(count_bytes(layer['moe']['experts']) for layer in params.values())


def one_layer(cfg: Config, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The experts of a layer, bfloat16."""
    count, width, hidden = cfg.experts[0], cfg.width, cfg.expert_hidden
    shapes = {'gate': (width, hidden), 'up': (width, hidden), 'down': (hidden, width)}
    experts = {}
    for name, shape in shapes.items():
        experts[name] = np.empty((count, *shape), ml_dtypes.bfloat16)
        for expert in experts[name]:
            expert[...] = rng.standard_normal(shape, np.float32) * shape[0] ** -0.5
    return experts


def model(cfg: Config, experts: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, Any]:
    """MoE layers with routers of their own, whose experts are the same arrays."""
    shape, scale = (cfg.experts[0], cfg.width), cfg.width**-0.5
    return {f'layer_{i}': {'moe': {'experts': experts, 'router': {
        'kernel': rng.standard_normal(shape, np.float32) * np.float32(scale),
    }}} for i in range(cfg.layers)}


def made(cfg: Config, params: Any, seed: int) -> Stats:
    """Statistics of the default set in their true shapes and kinds, drawn at random."""
    rng = np.random.default_rng(seed)
    default = {name: about for name, about in STATISTICS.items() if not about.option}
    layers = {i: {name: drawn(about, cfg, i, rng) for name, about in default.items()}
              for i in cfg.moe_layers}
    return Stats(fingerprint(params, cfg), {'all': layers})


def drawn(about: Statistic, cfg: Config, layer: int, rng: np.random.Generator) -> np.ndarray:
    """One statistic as `observe` leaves it: whole counts, float64 sums that are not negative."""
    if about.kind == 'tally':
        ids = np.arange(VOCAB)
        return np.stack([ids, ids % cfg.experts[layer], np.full(VOCAB, TOKENS // VOCAB)], axis=1)
    sizes = {'R': cfg.experts[layer], 'D': cfg.width, 'F': cfg.expert_hidden, 'B': BINS,
             'k': cfg.topk - 1}
    shape = tuple(sizes.get(s, s) for s in about.shape)
    if about.kind == 'count':
        return np.asarray(rng.integers(1, TOKENS, shape))
    return np.asarray(rng.random(shape))

