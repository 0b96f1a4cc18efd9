"""Saves one checkpoint after another until it is killed; what test_save_kills.py runs.

Every number of the state of step n is n, so that a mixture of two steps would show.
"""

import sys
from pathlib import Path

import jax
import numpy as np

from tests.train.train_tiny import CFG, OPTIONS, params
from train.loop import store
from train.loop.state import TrainState, init_state


def state_of(step: int) -> TrainState:
    state = init_state(params(CFG), OPTIONS)
    filled = jax.tree.map(lambda leaf: jax.device_put(np.full_like(leaf, step)), state)
    return filled._replace(step=jax.device_put(np.int32(step)))


def main(out: str) -> None:
    with store.opened(Path(out), CFG, params(CFG), OPTIONS) as folder:
        step = folder.latest()
        while True:
            step += 1
            state = state_of(step)
            print('saving', step, flush=True)
            store.save(folder, step, state, f'batch {step}')
            print('saved', step, flush=True)


if __name__ == '__main__':
    main(sys.argv[1])
