"""Checks inside a caller's own shard_map; test_in_shard_map.py asks what each found.

    python tests/mesh/in_shard_map.py [CASE ...]   # a line of JSON for each: name, what went wrong

Two devices have half of the rows each and all parameters, under the default checks of
`jax.shard_map`. There the gradient by parameters is the sum over both devices.
"""

import json
import os
import sys
import traceback

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join(
    [os.environ.get('XLA_FLAGS', ''), '--xla_force_host_platform_device_count=2'])

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import moe_jax
from moe_jax import Config
from moe_jax.config import Rope
from moe_jax.layers import attention_loop
from moe_jax.model.decoder import hidden
from moe_jax.routing.designs.expert_choice import ExpertChoice
from moe_jax.routing.designs.hash import Hash
from train.objectives import head_loss

BASE = Config(vocab=29, positions=16, width=16, heads=2, mlp_hidden=24, expert_hidden=12,
              experts=(4, 0, 4), topk=2, capacity_train=None, capacity_eval=None)
# (config, backend of the grouped matmul)
CASES = {
    'loop': (BASE, 'loop'),
    'gated, bfloat16': (BASE.replace(ffn='swiglu', ffn_bias=False, dtype='bfloat16'), 'loop'),
    'blocks': (BASE, 'blocks'),
    'ragged': (BASE, 'ragged'),
    'native': (BASE, 'native'),
    'capacity': (BASE.replace(capacity_eval=1.0), 'loop'),
    'sinks, windows': (BASE.replace(
        sinks=True, windows=(3, 0, 3), rope=Rope(dim=4), norm='rms', tied=False), 'loop'),
    'expert choice': (BASE.replace(router=ExpertChoice(capacity=1.0)), 'loop'),
    'hash': (BASE.replace(router=Hash(topk=2, seed=1)), 'loop'),
}


def check(cfg, backend, whole=False):
    """The gradient of a function of the logits, on two devices as on one.

    whole: the logits too, and the gradient of the blocked cross-entropy.
    """
    os.environ['MOE_JAX_GROUPED'] = backend
    params = jax.tree.map(lambda leaf: leaf.astype(cfg.dtype), moe_jax.init(cfg, jax.random.key(0)))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, cfg.vocab, (4, 12)).astype(np.int32)
    segments = np.where(np.arange(12) < np.array([12, 7, 12, 9])[:, None], 1, 0).astype(np.int32)
    weights = rng.random(tokens.shape).astype(np.float32) * (segments > 0)
    mesh = jax.make_mesh((2,), ('mine',), axis_types=(AxisType.Auto,))

    def logits(params, tokens, segments, weights):
        return moe_jax.forward(cfg, params, tokens, segments)[0] * (segments > 0)[..., None]

    def square(*args):
        return jnp.square(logits(*args)).sum()

    def nats(params, tokens, segments, weights):
        x, _ = hidden(cfg, params, tokens, segments)
        return head_loss.cross_entropy(cfg, params, x, tokens, weights)[0]

    tolerance = 2e-2 if cfg.dtype == 'bfloat16' else 2e-4
    rows = tokens, segments, weights
    asked = [(jax.grad(square), P())]
    if whole:
        asked += [(logits, P('mine')), (jax.grad(nats), P())]
    for function, out in asked:
        run = jax.shard_map(function, mesh=mesh, in_specs=(P(), *(P('mine'),) * 3), out_specs=out)
        found, alone = jax.jit(run)(params, *rows), halves(function, params, rows)
        found, alone = (np.concatenate([np.ravel(leaf).astype(np.float32)
                                        for leaf in jax.tree.leaves(tree)])
                        for tree in (found, alone))
        # Some leaves have a gradient of zero but for rounding, such as the keys' biases.
        np.testing.assert_allclose(found, alone, rtol=tolerance,
                                   atol=tolerance * np.abs(alone).max())


def halves(function, params, rows):
    """What a function gives for each half of the rows: side by side, or its gradients summed."""
    parts = [jax.jit(function)(params, *(a[half] for a in rows))
             for half in (slice(0, 2), slice(2, 4))]
    if isinstance(parts[0], jax.Array):
        return jnp.concatenate(parts)
    return jax.tree.map(jnp.add, *parts)


def blocked_attention():
    """The way that keeps no probabilities, of several parts of a row."""
    attention_loop.SCORES = 2**6
    check(*CASES['sinks, windows'])


if __name__ == '__main__':
    for name in sys.argv[1:] or [*CASES, 'blocked attention']:
        try:
            if name == 'blocked attention':
                blocked_attention()
            else:
                check(*CASES[name], whole=name == 'loop')
            fault = ''
        except Exception:
            fault = traceback.format_exc()[-3000:]
        print(json.dumps([name, fault]), flush=True)
