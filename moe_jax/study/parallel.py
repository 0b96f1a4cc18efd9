"""Forward latency by expert count and expert-parallel degree, in a process of its own.

    python -m moe_jax.study.parallel < question.json > answer.json

On CPU this process simulates the devices, which share the machine's cores: the cost of more
devices can be read, not their gain. On an accelerator it uses the available devices.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

FLAG = '--xla_force_host_platform_device_count='


def measured(
    configs: Sequence[str], degrees: Sequence[int], shape: tuple[int, int], rounds: int
) -> list[dict[str, list[float]]]:
    """Milliseconds of each round by degree ('1', '2', ...), of each model (a Config as JSON).

    On an accelerator, which one process holds, the measurement runs in this process, as does a
    degree of 1 alone. Degrees beyond the number of devices are left out. Raises RuntimeError with
    the output of the process if it fails.
    """
    import jax

    question = {'configs': list(configs), 'degrees': list(degrees), 'shape': list(shape),
                'rounds': rounds}
    if jax.default_backend() != 'cpu' or max(degrees) == 1:
        return answer(question)
    flags = f'{os.environ.get("XLA_FLAGS", "")} {FLAG}{max(degrees)}'
    done = subprocess.run(
        [sys.executable, '-m', 'moe_jax.study.parallel'], input=json.dumps(question), text=True,
        env=os.environ | {'XLA_FLAGS': flags.strip()}, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f'measuring on {max(degrees)} devices failed: {done.stderr[-2000:]}')
    return json.loads(done.stdout)


def answer(asked: dict[str, Any]) -> list[dict[str, list[float]]]:
    """The result of `measured`, on the devices of this process."""
    import jax

    from moe_jax.base.sharding import make_mesh
    from moe_jax.config import Config
    from moe_jax.study.clock import forward_milliseconds

    degrees = [n for n in asked['degrees'] if n <= jax.device_count()]
    meshes = {n: None if n == 1 else make_mesh(expert=n) for n in degrees}
    measured = []
    for text in asked['configs']:
        cfg = Config.from_json(text)
        times = forward_milliseconds(
            [cfg] * len(degrees), tuple(asked['shape']), asked['rounds'], list(meshes.values()))
        measured.append(dict(zip(map(str, degrees), times, strict=True)))
    return measured


if __name__ == '__main__':
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
