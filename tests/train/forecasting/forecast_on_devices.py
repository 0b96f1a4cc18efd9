"""Run by test_forecast_xla.py in a process of its own: what XLA allocates and sends on 4 devices.

Prints one line of JSON for each case named: the case, bytes by XLA, bytes by the forecast,
bytes of collectives' results in the compiled program, bytes sent by the forecast.
"""

import json
import math
import os
import re
import sys

os.environ['XLA_FLAGS'] = ' '.join(
    [os.environ.get('XLA_FLAGS', ''), '--xla_force_host_platform_device_count=4'])

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import train
from moe_jax import Config
from moe_jax.base import sharding
from moe_jax.model import decoder
from train.loop.step import step_of
from train.trainable.resolved import resolve

SHARED = {'vocab': 512, 'heads': 4, 'width': 64, 'mlp_hidden': 256, 'expert_hidden': 256}
MOST_ACTIVATIONS = Config(**SHARED, positions=128, experts=(4,)), 16, 128  # rows, tokens in a row
MOST_PARAMS = Config(**SHARED, positions=32, experts=(32,)), 8, 32
CASES = {
    'one device': (*MOST_ACTIVATIONS, {}),
    'exchange': (*MOST_ACTIVATIONS, {'data': 2, 'expert': 2}),
    'model': (*MOST_ACTIVATIONS, {'model': 2}),
    'data': (*MOST_PARAMS, {'data': 4}),
    'fsdp': (*MOST_PARAMS, {'fsdp': 4}),
}
KINDS = r'= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all)\('
BYTES = {'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'pred': 1}


def compiled(cfg, options, axes):
    """The program of one step on a mesh."""
    params = decoder.init(cfg, jax.random.key(0))
    mesh = sharding.make_mesh(**axes) if axes else None
    params = sharding.place(params, mesh) if mesh else params
    where = NamedSharding(mesh, P(None, sharding.row_axes(mesh))) if mesh else None
    shape = (options.accumulate, options.batch, options.length)
    batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for name, dtype in
             (('tokens', jnp.int32), ('segments', jnp.int32), ('weights', jnp.float32))}
    with sharding.on_mesh(params):
        step = step_of(cfg, options, resolve(params, options.trainable))
        return step.func.lower(train.init_state(params, options), batch, **step.keywords).compile()


def sent(program) -> dict[str, int]:
    """Bytes of the results of collectives, by kind."""
    found: dict[str, int] = {}
    for result, kind in re.findall(KINDS, program.as_text()):
        size = sum(BYTES[dtype] * math.prod(int(n) for n in shape.split(',') if n)
                   for dtype, shape in re.findall(r'(\w+)\[([0-9,]*)\]', result))
        found[kind] = found.get(kind, 0) + size
    return found


def main(names: list[str]) -> None:
    for name in names:
        cfg, rows, length, axes = CASES[name]
        options = train.TrainOptions(steps=2, warmup=1, batch=rows, length=length)
        program = compiled(cfg, options, axes)
        stats = program.memory_analysis()
        xla = (stats.argument_size_in_bytes + stats.temp_size_in_bytes
               + stats.output_size_in_bytes - stats.alias_size_in_bytes)
        ours = train.forecast(cfg, options, axes, 'cpu')
        print(json.dumps([name, xla, ours.memory.peak, sent(program), ours.traffic._asdict()]),
              flush=True)


if __name__ == '__main__':
    main(sys.argv[1:])
