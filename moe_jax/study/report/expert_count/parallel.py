"""Quality beside latency, by number of experts and of devices."""

import numpy as np

from moe_jax.study.report.document import Cell, Table
from moe_jax.study.report.expert_count.tables import nats
from moe_jax.study.report.expert_count.values import SCRATCH, Records


def table(records: Records) -> Table | None:
    """A row for each expert count: quality from scratch, and milliseconds on 1, 2, ... devices."""
    if not records.parallels:
        return None
    timing = records.parallels[0]
    degrees = sorted({n for times in timing.measured.values() for n in times})
    devices = sorted(timing.modelled)
    rows = []
    for experts, times in sorted(timing.measured.items()):
        cells = [Cell(str(experts)), Cell(_quality(records, experts))]
        for n in degrees:
            rounds = times.get(n, ())
            cells.append(Cell(f'{np.median(rounds):.2f}', f'[{min(rounds):.2f}, {max(rounds):.2f}]')
                         if rounds else Cell('–'))
        for device in devices:
            by_degree = timing.modelled[device].get(experts, {})
            cells.append(Cell(' / '.join(f'{by_degree[n]:.3g}' for n in degrees
                                         if n in by_degree) or '–'))
        rows.append(tuple(cells))
    listed = ' / '.join(map(str, degrees))
    heads = ('experts', 'from scratch, nats', *(f'ms on {n}' for n in degrees),
             *(f'{device}, ms on {listed}' for device in devices))
    return Table('Quality and latency over devices', heads, tuple(rows), _note(timing.tokens))


def _quality(records: Records, experts: int) -> str:
    """Mean log-likelihood over tasks and seeds of the models pretrained at this size, tuned."""
    values = [stage.log_likelihood for score in records.scores
              if score.model.method == SCRATCH and score.model.keep == experts
              for stage in score.stages[-1:]]
    return nats(float(np.mean(values))) if values else '–'


def _note(tokens: int | None) -> str:
    size = f' of {tokens:,} tokens' if tokens else ''
    return (f'Milliseconds of a forward pass{size} with the experts of each layer spread over 1 or '
            'more devices. Measured on this machine (median, fastest and slowest round): devices '
            'of a CPU share its cores, so what more of them cost can be read there, not what they '
            "save. Modelled from the makers' figures of the named devices.")
