"""Progress of a run for people: one live line on a terminal, or the caller's own callback."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moe_jax.base import processes

Report = Callable[[int, int, dict[str, Any]], None]


@contextlib.contextmanager
def reporter(progress: Report | None, start: int, steps: int) -> Iterator[Report | None]:
    """The caller's callback, one that draws a live line if stderr is a terminal, or None.

    None in every process but the first.
    """
    if not processes.is_first():
        yield None
        return
    if progress is not None or not sys.stderr.isatty():
        yield progress
        return
    columns = (BarColumn(bar_width=8), MofNCompleteColumn(),
               TextColumn('{task.fields[text]}'), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        task = bar.add_task('train', total=steps, completed=start, text='compiling')
        began, tokens = None, 0.0

        def report(step: int, steps: int, metrics: dict[str, Any]) -> None:
            nonlocal began, tokens
            now = time.monotonic()
            if began is None:  # the first step waited for a compilation: it is not counted
                began = now
            else:
                tokens += metrics['tokens']
            rate = tokens / max(now - began, 1e-9)
            bar.update(task, completed=step, text=line(metrics, rate))

        yield report


def line(metrics: Mapping[str, Any], rate: float) -> str:
    """Loss, speed and expert load of one step, for a terminal."""
    return (
        f'loss {metrics["loss"]:.4f} {rate:,.0f} tok/s load {metrics["load_max"]:.2f}/'
        f'{metrics["load_mean"]:.2f} drop {100 * metrics["dropped"]:.1f}%'
    )
