"""A tiny model, its data, and a program that trains it; what the tests of `train` share."""

import sys
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from moe_jax.config import Config
from moe_jax.model import decoder
from train import TrainOptions, fit

CFG = Config(vocab=64, positions=16, width=16, heads=2, mlp_hidden=32, expert_hidden=24,
             experts=(4, 0), balance=0.01, zloss=0.001, jitter=0.01)
DROPLESS = CFG.replace(capacity_train=None, balance=0.0, zloss=0.0, jitter=0.0)
OPTIONS = TrainOptions(steps=7, batch=4, length=12, peak_lr=3e-3, warmup=2, log_every=2,
                       checkpoint_every=3)


def params(cfg: Config = CFG, seed: int = 0):
    return decoder.init(cfg, jax.random.key(seed))


def batch(index: int, rows: int = 4, length: int = 12) -> dict[str, np.ndarray]:
    """Two documents and some padding in every row; weights that are not all ones."""
    rng = np.random.default_rng(index)
    tokens = rng.integers(2, 64, (rows, length)).astype(np.int32)
    segments = np.ones((rows, length), np.int32)
    segments[:, length // 2:] = 2
    segments[:, length - 2:] = 0
    weights = rng.uniform(0.5, 1.5, (rows, length)).astype(np.float32)
    weights[:, [0, length // 2]] = 0
    return {'tokens': tokens, 'segments': segments, 'weights': weights * (segments > 0)}


def stream(start: int) -> Iterator[dict[str, np.ndarray]]:
    while True:
        yield batch(start)
        start += 1


def stream_until(step: int, action: Callable[[], None]) -> Callable:
    """`stream`, which does something just before it yields batch number `step`."""
    def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
        for index, rows in enumerate(stream(start), start):
            if index == step:
                action()
            yield rows
    return batches


def equal(a, b) -> bool:
    """Whether two trees agree in structure, dtypes and every byte."""
    same = jax.tree.map(
        lambda x, y: x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b
    )
    return all(jax.tree.leaves(same))


def main(out: str, seconds: float) -> None:
    """Train 28 steps slowly enough to be killed at any moment."""
    def slow(start: int):
        for rows in stream(start):
            time.sleep(seconds)
            yield rows
    print('ready', flush=True)
    fit(CFG, params(), slow, program_options(), out=out,
        progress=lambda step, steps, metrics: print(step, flush=True))


def program_options() -> TrainOptions:
    return TrainOptions(steps=28, batch=4, length=12, peak_lr=3e-3, warmup=5, log_every=1,
                        checkpoint_every=2)


if __name__ == '__main__':
    main(sys.argv[1], float(sys.argv[2]))
