"""How long the search over all sets of experts takes, against running the layer for each set.

The search is `prune.plan('naee')` on a saved reservoir: inner products of expert outputs, no
expert evaluated. Its rival is this library's own MoE layer, jitted, with the experts and router
rows of one set, on the same tokens, and the mean squared difference from the full layer's output:
the same number, computed as the paper does. Both are timed in turn in every round, and what they
find is held against each other.

Letters: E experts, G kept, S tokens, D width, F hidden width, K experts per token.
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import prune
from benchmarks.measured import Measured, Results, median, ratios, rounds, seconds
from moe_jax import Config, Stats, init
from moe_jax.base.tree import take
from moe_jax.calibration import reservoir as sample
from moe_jax.model.fingerprint import fingerprint
from moe_jax.model.moe import SparseMoe
from moe_jax.model.network import rows_in
from prune.subsets import error
from prune.subsets import search as subsets

SIZES = {'full': (16, 8, 16_384, 512, 1024), 'small': (8, 4, 1024, 64, 128)}
TOPK = 2
ROUNDS = 5


def run(args: argparse.Namespace) -> Results:
    """Both costs of a set and their ratio."""
    size = 'small' if args.small else 'full'
    experts, kept, tokens, width, hidden = SIZES[size]
    cfg = Config(
        vocab=8, positions=8, width=width, heads=1, mlp_hidden=8, expert_hidden=hidden,
        experts=(experts,), topk=TOPK, gate='softmax_topk_renorm', ffn='swiglu', ffn_bias=False,
        capacity_eval=None,
    )
    keys = jax.random.split(jax.random.key(args.seed))
    params = init(cfg, keys[0])
    x = jax.random.normal(keys[1], (1, tokens, width))
    made: list[Stats] = []
    making = seconds(lambda: made.append(statistics_of(cfg, params, x)))
    results = measure(cfg, params, x, made[0], kept, args)
    settings = (f'one layer, E={experts}, G={kept}, S={tokens:,}, top {TOPK} renormalised, SwiGLU '
                f'D={width} F={hidden}, float32; the rival scales with D F, the search does not')
    yield settings, [
        *results, Measured('inner products of all experts, once (with compilation)', making)]


def measure(
    cfg: Config, params: Any, x: jax.Array, stats: Stats, kept: int, args: argparse.Namespace
) -> list[Measured]:
    """Time the search and the rival in turn, and compare their errors on a few sets."""
    sets = subsets.every(cfg.experts[0], kept)
    picked = sets[np.random.default_rng(args.seed).choice(len(sets), 4, replace=False)]
    moe = params['layer_0']['moe']
    y = layer(cfg, moe, x)
    again = partial(rerun, cfg.with_experts(kept), moe, x, y)

    def search() -> None:
        prune.plan('naee', stats, params, cfg, experts=kept)

    cold = seconds(search)
    for_all, for_four = rounds(args.rounds or ROUNDS,
                               [search, lambda: [again(ids) for ids in picked]])
    searched, run = ([1e3 * t / n for t in times] for times, n in
                     ((for_all, len(sets)), (for_four, len(picked))))
    reservoir = error.sample_of(stats.layer(0), moe, cfg)
    exact = np.array([float(again(ids)) for ids in picked])
    apart = np.abs(error.errors(reservoir, cfg, picked) / exact - 1).max()
    every = f'all {len(sets):,} sets'
    return [
        median(every, for_all, 's', ('<=', 60.0)),
        Measured(f'{every}, first time (with compilation)', cold, 's', ('<=', 60.0)),
        median('one set', searched, 'ms'),
        median('one set by running the layer', run, 'ms'),
        median('running the layer over the search', ratios(run, searched), 'x', ('>=', 50.0)),
        Measured('largest relative difference of their errors', float(apart), '', ('<=', 1e-3)),
    ]


@partial(jax.jit, static_argnums=0)
def layer(cfg: Config, moe: Any, x: jax.Array) -> jax.Array:
    """Output [1, S, D] of the MoE layer of a one-layer model."""
    return apply(cfg, moe, x)[0]


@partial(jax.jit, static_argnums=0)
def rerun(cfg: Config, moe: Any, x: jax.Array, y: jax.Array, ids: np.ndarray) -> jax.Array:
    """Mean |y_t - y'_t|^2, y' from the layer that has the experts `ids` [G] alone."""
    return jnp.square(apply(cfg, take(moe, ids), x)[0] - y).sum(axis=-1).mean()


def apply(cfg: Config, moe: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    """The layer's output, and what it recorded of its routing."""
    segments = jnp.ones(x.shape[:2], jnp.int32)
    y, state = SparseMoe(cfg, 0, False).apply({'params': moe}, x, rows_in(cfg, segments)[0],
                                              mutable=['routing'])
    return y, state['routing']['record'][0]


def statistics_of(cfg: Config, params: Any, x: jax.Array) -> Stats:
    """The reservoir that `moe_jax.observe` would keep if all tokens were in it."""
    moe = params['layer_0']['moe']
    routing = apply(cfg, moe, x)[1]
    gates = np.zeros(routing.logits.shape, np.float32)
    np.put_along_axis(gates, np.asarray(routing.ids), np.asarray(routing.gates), axis=1)
    seen = {'tokens': np.asarray(len(gates)), 'sample_key': np.arange(len(gates), dtype=np.uint64),
            'sample_input': np.asarray(x[0]), 'sample_logits': np.asarray(routing.logits),
            'sample_gates': gates}
    done = sample.finish(cfg, moe['experts'], seen, 'gram')
    return Stats(fingerprint(params, cfg), {'all': {0: done}}, reservoir=len(gates))

