"""One training step of a small model against the same step in torch, as a ratio.

Ours is the step that `train.fit` runs, with its donated state; the rival is `torch_model` with the
experts of a layer in one array, multiplied by torch's grouped product, and with an array for each
(the faster in the median). Both start from the same weights, clip the gradient, and update all
leaves by AdamW, on the same tokens; the losses before the first and before the second update are
held against each other. In bfloat16 matrices are cast where they are used and stay float32.

Letters: L layers, D width, E experts, B rows, T tokens, V vocabulary.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks import torch_layer, torch_model
from benchmarks.measured import (
    Measured,
    Results,
    best,
    compared,
    median,
    rounds,
    seconds,
)
from moe_jax import Config, init
from train import TrainOptions
from train.loop.state import init_state
from train.loop.step import make_step

ROUNDS = 9
APART = {'float32': 1e-4, 'bfloat16': 1e-2}
TARGET = ('>=', 1.0)


def run(args: argparse.Namespace) -> Results:
    """The step in float32, which is a target, and in bfloat16."""
    torch_layer.use_all_cores()
    for dtype, target in (('float32', TARGET), ('bfloat16', None)):
        cfg, batch = sizes(args.small, dtype)
        yield (f'L={cfg.layers}, every other with E={max(cfg.experts)} top-1 dropless, '
               f'D={cfg.width} V={cfg.vocab} T={cfg.positions} B={batch}, {dtype}, AdamW, '
               f'torch {torch_layer.version()}'), measure(cfg, batch, target, args)


def sizes(small: bool, dtype: str) -> tuple[Config, int]:
    """The model, and how many rows a step has."""
    layers, width, experts, vocab, length, batch = (
        (2, 64, 8, 512, 64, 4) if small else (8, 256, 32, 8192, 256, 8))
    cfg = Config(vocab=vocab, positions=length, width=width, heads=width // 64 or 1,
                 mlp_hidden=4 * width, expert_hidden=4 * width, dtype=dtype, balance=0.0,
                 experts=(experts, 0) * (layers // 2), capacity_train=None, capacity_eval=None,
                 ffn_bias=False, qkv_bias=False, out_bias=False)
    return cfg, batch


def measure(cfg: Config, batch: int, target: Any, args: argparse.Namespace) -> list[Measured]:
    """Times of the step, ours and torch's, and how far their losses are apart."""
    options = TrainOptions(steps=1000, batch=batch, length=cfg.positions, peak_lr=1e-3, warmup=0,
                           schedule='constant')
    params = jax.device_get(init(cfg, jax.random.key(args.seed)))
    tokens = np.random.default_rng(args.seed).integers(
        0, cfg.vocab, (batch, cfg.positions)).astype(np.int32)
    steps = {'ours': ours(cfg, options, params, tokens)}
    steps |= {way: theirs(cfg, options, way, params, tokens) for way in torch_layer.WAYS}
    losses: dict[str, list[float]] = {}
    first = seconds(lambda: losses.update(ours=[float(steps['ours']())]))
    for way in torch_layer.WAYS:
        losses[way] = [float(steps[way]())]
    for way, step in steps.items():
        losses[way].append(float(step()))
    count = args.rounds or (2 if args.small else ROUNDS)
    times = dict(zip(steps, rounds(count, list(steps.values())), strict=True))
    return summary(cfg, losses, times, first, tokens.size, target)


def summary(cfg: Config, losses: dict[str, list[float]], times: dict[str, list[float]],
            first: float, tokens: int, target: Any) -> list[Measured]:
    """The numbers of one dtype."""
    error = np.abs([np.subtract(losses[way], losses['ours']) for way in torch_layer.WAYS]).max(0)
    rival = best({way: times[way] for way in torch_layer.WAYS})
    limit = ('<=', APART[cfg.dtype])
    return [
        Measured('loss before the first update, difference to torch', float(error[0]), 'nats',
                 limit),
        Measured('loss before the second update, difference to torch', float(error[1]), 'nats',
                 limit),
        *compared('the faster of torch over ours', times[rival], times['ours'], target),
        median('ours', times['ours']),
        *(median(f'torch, {way}', times[way]) for way in torch_layer.WAYS),
        median('tokens a second, ours', [tokens / t for t in times['ours']], ''),
        Measured('our first step, with tracing and compilation', first),
    ]


def ours(cfg: Config, options: TrainOptions, params: Any, tokens: np.ndarray
         ) -> Callable[[], jax.Array]:
    """A step from where the one before it ended; it gives the loss before its update."""
    step, state = make_step(cfg, options), init_state(params, options)
    shape = (1, *tokens.shape)
    batch = jax.device_put({'tokens': tokens.reshape(shape), 'segments': np.ones(shape, np.int32),
                            'weights': np.ones(shape, np.float32)})

    def run() -> jax.Array:
        nonlocal state
        state, metrics = step(state, batch)
        return jax.block_until_ready((metrics['loss'], state))[0]

    return run


def theirs(cfg: Config, options: TrainOptions, way: str, params: Any, tokens: np.ndarray
           ) -> Callable[[], Any]:
    """As `ours`, in torch."""
    return torch_model.make_step(
        cfg, way, torch_model.parameters(way, params), torch_layer.tensor(tokens).long(),
        options.peak_lr, options.weight_decay, (options.b1, options.b2), options.eps, options.clip)
