"""What the benchmarks share: rounds of timings, the table, and records with the machine's name.

Timings of a machine that does other things too are compared round by round: everything is run in
turn in every round, a ratio is taken inside a round, and the median over rounds is what counts.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

DIGITS = 3
# Seconds before each run: threads of the run before that still wait for work have gone to sleep,
# and the processor has not, which would be held against whatever wakes many threads.
PAUSE = 0.005


class Measured(NamedTuple):
    """A number, its unit, and what it should be: ('<=', 60.0), or None where it only informs.

    spread: the least and the largest of all rounds.
    """

    what: str
    value: float
    unit: str = 's'
    target: tuple[str, float] | None = None
    spread: tuple[float, float] | None = None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        sign, limit = self.target
        return self.value <= limit if sign == '<=' else self.value >= limit


Results = Iterator[tuple[str, list[Measured]]]  # settings, and what was measured with them


def seconds(run: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call, whose arrays are waited for."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def rounds(
    count: int, runs: Sequence[Callable[[], Any]], after: Callable[[], Any] | None = None
) -> list[list[float]]:
    """Seconds of each run in each of `count` rounds, after one round that does not count.

    after: called behind every run, outside its time.
    """
    results: list[list[float]] = [[] for _ in runs]
    for _ in range(count + 1):
        for run, times in zip(runs, results, strict=True):
            time.sleep(PAUSE)
            times.append(seconds(run))
            if after is not None:
                after()
    return [times[1:] for times in results]


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """The ratio inside each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def median(
    what: str, values: Sequence[float], unit: str = 's', target: tuple[str, float] | None = None
) -> Measured:
    """The median over rounds, with their spread."""
    return Measured(what, statistics.median(values), unit, target, (min(values), max(values)))


def compared(
    what: str, above: Sequence[float], below: Sequence[float],
    target: tuple[str, float] | None = None,
) -> list[Measured]:
    """The median of the ratios of all rounds, and the ratio of the least times of both."""
    return [median(what, ratios(above, below), 'x', target),
            Measured(f'{what}, least over least', min(above) / min(below), 'x')]


def best(times: dict[str, Sequence[float]]) -> str:
    """The name of the run that is the fastest in the median."""
    return min(times, key=lambda name: statistics.median(times[name]))


def apart(ours: Any, theirs: Any) -> float:
    """The largest difference of two arrays over the largest number of the second."""
    ours, theirs = (np.asarray(a, np.float64) for a in (ours, theirs))
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def peak() -> int:
    """The most memory the process has had, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == 'darwin' else most * 1024


def cores() -> int:
    """How many processor cores this process may use."""
    return (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity')
            else os.cpu_count() or 1)


def machine() -> dict[str, Any]:
    """Processor, cores, device, versions, and how busy the machine was (load over a minute)."""
    names = [line.partition(':')[2].strip() for line in _lines('/proc/cpuinfo')
             if line.startswith('model name')]
    return {
        'processor': names[0] if names else platform.processor() or platform.machine(),
        'cores': cores(),
        'device': f'{jax.default_backend()}: {jax.devices()[0].device_kind}',
        'python': platform.python_version(), 'jax': jax.__version__,
        'load': round(os.getloadavg()[0], 2),
    }


def tell(
    benchmark: str, settings: str, results: Sequence[Measured], args: argparse.Namespace
) -> bool:
    """Print what was measured, append it to --out, and say whether a target was missed.

    Targets are of the full size alone.
    """
    here = machine()
    records = [record(benchmark, settings, one._replace(target=None) if args.small else one, here)
               for one in results]
    show(records)
    if args.out is not None:
        with args.out.open('a') as file:
            file.writelines(json.dumps(one) + '\n' for one in records)
    return any(one['met'] is False for one in records)


def record(benchmark: str, settings: str, one: Measured, here: dict[str, Any]) -> dict[str, Any]:
    """A measured number as it is written: one JSON object a line."""
    return {
        'benchmark': benchmark, 'what': one.what, 'value': one.value, 'unit': one.unit,
        'spread': one.spread, 'met': one.met,
        'target': None if one.target is None else ' '.join(map(str, one.target)),
        'settings': settings, 'machine': here,
        'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    }


def show(records: Sequence[dict[str, Any]]) -> None:
    """One table of records, with the settings of each benchmark and the machine below it."""
    table = Table('benchmark', 'what', 'value', 'all rounds', 'target', 'met')
    for one in records:
        met = {None: '', True: 'yes', False: 'NO'}[one['met']]
        spread = ' - '.join(shown(value, '') for value in one['spread'] or ())
        table.add_row(one['benchmark'], one['what'], shown(one['value'], one['unit']), spread,
                      one['target'] or '', met)
    console = Console(width=None if Console().is_terminal else 130)
    console.print(table)
    for name, settings in dict.fromkeys((one['benchmark'], one['settings']) for one in records):
        console.print(f'{name}: {settings}', highlight=False)
    console.print(', '.join(f'{k} {v}' for k, v in records[-1]['machine'].items()),
                  highlight=False)


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """The latest value of everything in the records, as tables with what they were measured with.
    """
    latest = {(one['benchmark'], one['settings'], one['what']): one for one in records}
    parts, groups = [], dict.fromkeys(key[:2] for key in latest)
    for benchmark, settings in groups:
        rows = [one for key, one in latest.items() if key[:2] == (benchmark, settings)]
        lines = [f'**{benchmark}**: {settings}', '', '| | median | all rounds | target | met |',
                 '|---|---|---|---|---|']
        for one in rows:
            spread = ' - '.join(shown(value, '') for value in one['spread'] or ())
            met = {None: '', True: 'yes', False: 'no'}[one['met']]
            lines.append(f'| {one["what"]} | {shown(one["value"], one["unit"])} | {spread} | '
                         f'{one["target"] or ""} | {met} |')
        parts.append('\n'.join(lines))
    machines = dict.fromkeys(
        ', '.join(f'{name} {value}' for name, value in one['machine'].items() if name != 'load')
        for one in latest.values())
    return '\n\n'.join([*parts, 'Measured on: ' + '; '.join(machines)])


def shown(value: float, unit: str) -> str:
    """A number with three digits, or all that stand before the point, and its unit."""
    text = f'{value:,.0f}' if value >= 10**DIGITS else f'{value:.{DIGITS}g}'
    return f'{text} {unit}'.rstrip()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
