"""One process of several that observe a tiny model together; run by test_processes.py.

    python tests/mesh/observing.py [PROCESS that fails]

What there is besides this process, the environment says (`moe_jax.base.processes.start`).
"""

import json
import os
import sys

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import numpy as np

from moe_jax import Config, Reference, init, observe
from moe_jax.base import processes, sharding
from moe_jax.model.fingerprint import fingerprint

CFG = Config(vocab=24, positions=16, width=16, heads=2, mlp_hidden=32, expert_hidden=24,
             experts=(4,), topk=2, capacity_train=None, capacity_eval=None)


def main(failing: int = -1) -> None:
    processes.start(heartbeat=5, ending=processes.ENDING if failing < 0 else 4)
    if jax.process_index() == failing:
        raise RuntimeError('its disk is not mounted')
    params = sharding.place(init(CFG, jax.random.key(0)), sharding.make_mesh(data=2, expert=2))
    tokens = np.random.default_rng(0).integers(0, 24, (6, 12)).astype(np.int32)
    batches = [{'tokens': tokens, 'mask': tokens > 2}]
    layer = observe(CFG, params, batches, reservoir=4, gradients=True).layer(0)
    wide = CFG.replace(width=64, expert_hidden=512)  # leaves of which a sample is read
    spread = sharding.place(init(wide, jax.random.key(1)), sharding.make_mesh(data=2, expert=2))
    same = Reference.of(CFG, params, batches).compare(CFG, params)
    # A pipe that nobody reads yet holds little.
    print(json.dumps({name: value.ravel()[:16].tolist() for name, value in layer.items()} | {
        'kl': [same.mean('kl')],
        'fingerprint': [*fingerprint(spread, wide).encode()]}))


if __name__ == '__main__':
    main(*map(int, sys.argv[1:]))
