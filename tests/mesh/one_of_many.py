"""One process of several that train a tiny model together; run by test_processes.py.

    python tests/mesh/one_of_many.py OUT STEPS [SECONDS a step waits]

What there is besides this process, the environment says (`moe_jax.base.processes.start`).
"""

import os
import sys
import time

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import numpy as np

from moe_jax import Config
from moe_jax.base import processes, sharding
from train import TrainOptions
from train.recipes.pretrain import pretrain

CFG = Config(vocab=24, positions=16, width=16, heads=2, mlp_hidden=32, expert_hidden=24,
             experts=(4, 0), topk=2, capacity_train=1.2, capacity_eval=None)


def main(out: str, steps: int, seconds: float) -> None:
    together = processes.start(heartbeat=5)
    rng = np.random.default_rng(0)
    rows = {'tokens': rng.integers(0, 24, (40, 12)).astype(np.int32),
            'segments': np.ones((40, 12), np.int32), 'weights': np.ones((40, 12), np.float32)}
    options = TrainOptions(steps=steps, batch=8, length=12, peak_lr=3e-3, warmup=2, log_every=1,
                           checkpoint_every=4)

    def report(step, total, metrics):
        print('step', step, flush=True)
        time.sleep(seconds)

    mesh = sharding.make_mesh(data=2, expert=2)
    _, history = pretrain(CFG, [(rows, 1.0)], options, mesh=mesh, out=out, progress=report)
    print('processes', jax.process_count() if together else 1, 'loss', history[-1]['loss'])


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
