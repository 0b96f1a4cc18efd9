"""`moe-jax latency`: what experts cost in time, by their number and the devices they lie on."""

import json
from pathlib import Path
from typing import Annotated

import tyro

from moe_jax.cli.shared import Positional, at_least

ROUNDS = 9


def latency(
    model: Positional[Annotated[str, tyro.conf.arg(metavar='MODEL')]],
    /,
    experts: tuple[int, ...] = (8, 32, 128),
    parallel: tuple[int, ...] = (1, 2, 4, 8),
    rows: int = 8,
    length: int = 128,
    peaks: tuple[str, ...] = ('v5e', 'h100'),
    measure: bool = False,
    out: Path | None = None,
) -> None:
    """Milliseconds of a forward pass by expert count and expert-parallel degree.

    Modelled from published figures of devices; with --measure also by the clock on this machine.
    Devices of a CPU are made for it and share its cores: what more of them cost can be read there,
    not what they save.

    Args:
        model: a preset (such as gpt2_354m), a model folder or a hub id.
        experts: experts in each MoE layer.
        parallel: over how many devices the experts of a layer lie.
        rows: rows of tokens in a pass, over all devices.
        length: tokens in a row.
        peaks: devices to model: v5e, v5p, v6e, a100, h100, h200, cpu, or four numbers.
        measure: time it here too.
        out: add what was found to this file, a JSON line for each expert count.
    """
    at_least(0, experts=experts)
    at_least(1, parallel=parallel, rows=rows, length=length)
    from rich.console import Console
    from rich.table import Table

    from moe_jax.cli import model_table
    from moe_jax.study import parallel as clock
    from moe_jax.study.description import machine
    from train.forecasting.latency import forward_latency

    base = model_table.config_of(model).replace(capacity_train=None, capacity_eval=None)
    configs = [base.with_experts(n) for n in experts]
    table = Table(title=f'{model}: milliseconds of a forward pass over {rows} x {length} tokens',
                  title_justify='left')
    for name in ('experts', 'on', *(f'{n} devices' if n > 1 else '1 device' for n in parallel)):
        table.add_column(name, justify='left' if name == 'on' else 'right')
    times = clock.measured([c.to_json() for c in configs], parallel, (rows, length),
                           ROUNDS) if measure else [{}] * len(configs)
    for count, cfg, found in zip(experts, configs, times, strict=True):
        modelled = {name: [1000 * forward_latency(cfg, (rows, length), {'expert': n}, name).seconds
                           for n in parallel] for name in peaks}
        for i, (name, values) in enumerate(modelled.items()):
            table.add_row(str(count) if i == 0 else '', f'{name}, modelled',
                          *(f'{value:.3g}' for value in values))
        if found:
            table.add_row('', 'here, measured', *(_median(found.get(str(n))) for n in parallel))
        if out is not None:
            line = {'model': model, 'experts': count, 'parallel': list(parallel),
                    'tokens': [rows, length], 'modelled': modelled, 'measured': found}
            line |= {'machine': machine()} if found else {}
            with open(out, 'a') as file:
                file.write(json.dumps(line) + '\n')
    Console().print(table)


def _median(times: list[float] | None) -> str:
    return '-' if not times else f'{sorted(times)[len(times) // 2]:.3g}'
