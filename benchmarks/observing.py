"""How long `moe_jax.observe` takes with its default set, against scoring and against its rival.

'score': the log-probabilities of the same batches. The vocabulary is small, so that the head's
share of the scoring pass is that of released models (about a tenth of the active weights); observe
has no head. The rival evaluates every expert on every token of each layer's input and keeps a mean
over the tokens that chose it, as REAP's hooks do (Lasby et al. 2025): here a compiled pass of this
library's own model and, layer by layer, expert by expert, one product over all tokens, so that
nothing but the work is different. Its numbers are held against those of observe. All run over the
same batches, in turn in every round.

Memory: what XLA plans for temporary arrays and outputs.

Letters: L layers, D width, F hidden width, E experts, K experts per token, B rows, T tokens a row,
N = B T.
"""

import argparse
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measured import Measured, Results, apart, compared, median, ratios, rounds
from moe_jax import Config, Stats, init, observe, score
from moe_jax.calibration.block_pass import layer_config, watched
from moe_jax.calibration.collector import Options
from moe_jax.layers import ffn
from moe_jax.model.choices import Record
from moe_jax.model.decoder import hidden

# L, D, F, E, K, B, T, batches, and whether every expert on every token is run beside it
SHAPES = {
    'full': [(6, 256, 512, 16, 2, 8, 256, 4, False), (4, 512, 1024, 32, 4, 8, 256, 4, False),
             (2, 512, 512, 128, 8, 8, 256, 1, True)],
    'small': [(2, 64, 128, 8, 2, 4, 64, 4, False), (2, 64, 128, 32, 2, 4, 64, 1, True)],
}
ROUNDS, VOCAB = 7, 2048
LABELS = {'rival': 'every expert on every token'}
LIMIT, RIVAL, APART = ('<=', 1.3), ('>=', 6.0), ('<=', 1e-4)


def run(args: argparse.Namespace) -> Results:
    """Times and ratios of each shape."""
    for *shape, count, rival in SHAPES['small' if args.small else 'full']:
        names = ' '.join(f'{name}={n}' for name, n in zip('LDFEKBT', shape, strict=True))
        yield (f'{names}, {count} batches of B x T tokens, SwiGLU, V={VOCAB}, 4 heads, float32, '
               'dropless'), measure(*shape, count, rival, args)


def measure(
    layers: int, width: int, hidden_width: int, experts: int, topk: int, rows: int, length: int,
    number: int, rival: bool, args: argparse.Namespace,
) -> list[Measured]:
    """Time all passes over the same batches."""
    cfg = Config(
        vocab=VOCAB, positions=length, width=width, heads=4, mlp_hidden=8,
        expert_hidden=hidden_width, experts=(experts,) * layers, topk=topk,
        gate='softmax_topk_renorm', ffn='swiglu', ffn_bias=False, capacity_eval=None,
    )
    params = init(cfg, jax.random.key(args.seed))
    rng = np.random.default_rng(args.seed)
    batches = [{'tokens': rng.integers(0, VOCAB, (rows, length)).astype(np.int32),
                'mask': np.ones((rows, length), bool)} for _ in range(number)]
    runs = {'score': partial(scored, cfg, params, batches),
            'observe': partial(observe, cfg, params, batches)}
    if rival:
        runs['rival'] = partial(every, cfg, params, batches)
    results = [] if not rival else [
        Measured('largest relative difference of the mean gated norms', differ(
            cfg, runs['observe'](), runs['rival']()), '', APART)]
    count = args.rounds or (2 if args.small else ROUNDS)
    times = dict(zip(runs, rounds(count, list(runs.values())), strict=True))
    return [*results, *summary(times), *(memory_of(cfg, params, batches[0]) if rival else ())]


def memory_of(cfg: Config, params: Any, batch: Mapping[str, Any]) -> list[Measured]:
    """What XLA plans for one layer of observe beside its weights, and for the whole rival."""
    rows, length = batch['tokens'].shape
    x = jax.ShapeDtypeStruct((rows, length, cfg.width), jnp.float32)
    ids, none = (jax.ShapeDtypeStruct(s, jnp.int32) for s in ((rows, length), (1, 0)))
    layer = jax.jit(watched(layer_config(cfg, 0), Options().observer)).lower(
        params['layer_0'], x, ids, ids, none)
    plans = {'observe, a layer': layer, LABELS['rival']: _every(cfg).lower(params, batch['tokens'])}
    sizes = {name: plan.compile().memory_analysis() for name, plan in plans.items()}
    return [Measured(f'{name}, memory beside its weights', (size.temp_size_in_bytes
                     + size.output_size_in_bytes) / 1e6, 'MB') for name, size in sizes.items()]


def summary(times: Mapping[str, list[float]]) -> list[Measured]:
    """The numbers of one shape."""
    results = [median(LABELS.get(name, name), each) for name, each in times.items()]
    results.append(median('observe over score', ratios(times['observe'], times['score']), 'x',
                        LIMIT))
    if 'rival' in times:
        results += compared(f'{LABELS["rival"]} over observe', times['rival'], times['observe'],
                            RIVAL)
    return results


def scored(cfg: Config, params: Any, batches: list[Mapping[str, Any]]) -> list[np.ndarray]:
    """The log-probabilities of all batches, on the host."""
    return [np.asarray(score(cfg, params, b['tokens'], b['mask'])) for b in batches]


def every(cfg: Config, params: Any, batches: list[Mapping[str, Any]]) -> dict[int, np.ndarray]:
    """Sums of g |y| over tokens that chose each expert, [E] by layer, the long way."""
    total: dict[int, np.ndarray] = {i: np.zeros(cfg.experts[i]) for i in cfg.moe_layers}
    for batch in batches:
        results = jax.device_get(_every(cfg)(params, batch['tokens']))
        total = {i: total[i] + results[i] for i in total}
    return total


@lru_cache(maxsize=8)
def _every(cfg: Config):
    def run(params, tokens):
        routing = hidden(cfg, params, tokens, watch=('routing',))[1]['routing']
        return {i: layer(params[f'layer_{i}']['moe']['experts'], routing[i])
                for i in cfg.moe_layers}

    def layer(weights: Any, record: Record) -> jax.Array:
        def one(item):
            e, expert = item
            norm = jnp.linalg.norm(ffn.of(cfg)(expert, record.inputs), axis=-1)
            gate = jnp.where(record.ids == e, record.gates, 0.0).sum(axis=1)
            return (gate * norm).sum()

        count = jax.tree.leaves(weights)[0].shape[0]
        return jax.lax.map(one, (jnp.arange(count), weights))

    return jax.jit(run)


def differ(cfg: Config, stats: Stats, rival: Mapping[int, np.ndarray]) -> float:
    """The largest difference of any layer between both ways to the same sums."""
    return max(apart(stats.layer(i)['moments'][1, 1], rival[i]) for i in cfg.moe_layers)
