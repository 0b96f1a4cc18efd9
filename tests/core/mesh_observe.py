"""Run by test_observe_mesh.py in a process of its own: statistics on 8 devices and on one."""

import os

os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax import Config, model, observe
from moe_jax.sharding import make_mesh, shardings

CFG = Config(vocab=23, positions=10, width=8, heads=2, mlp_hidden=12, expert_hidden=6,
             experts=(4, 0, 4), topk=2, capacity_eval=None)


def main() -> None:
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype),
                          model.shapes(CFG))
    mask = np.ones((11, 9), bool)
    mask[3, 5:], mask[7, 2:] = False, False
    batches = [{'tokens': rng.integers(0, 23, (11, 9)), 'mask': mask}]
    alone = observe(CFG, params, batches, reservoir=20, dense=True)
    for axes in ({'data': 8}, {'data': 2, 'expert': 4}):
        mesh = make_mesh(**axes)
        placed = jax.device_put(params, shardings(params, mesh))
        found = observe(CFG, placed, batches, reservoir=20, dense=True, mesh=mesh)
        assert found.data == alone.data
        for i in (0, 2):
            one, many = alone.layer(i), found.layer(i)
            assert set(one) == set(many)
            for name, value in one.items():
                size = 1e-5 * np.abs(value).max() if value.dtype.kind == 'f' else 0
                np.testing.assert_allclose(many[name], value, rtol=0, atol=size, err_msg=name)


if __name__ == '__main__':
    main()
    print('same')
