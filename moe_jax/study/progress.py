"""The display of a running study: one bar with an ETA, and a line for each finished cell."""

import time
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

QUIET_SECONDS = 60  # without a terminal, a long cell reports its progress this often


class Display:
    """A progress bar on a terminal, plain lines elsewhere; the ETA counts the work left.

    Work is in trained tokens; the rate is that of this process, so what an earlier process
    finished does not flatter it.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.total, self.left, self.cells, self.finished = 0.0, 0.0, 0, 0
        self.cell_left, self.worked = 0.0, 0.0
        self.started = self.said = time.monotonic()
        self.bar = Progress(
            TextColumn('[bold]{task.fields[count]}'), BarColumn(bar_width=30),
            TextColumn('{task.percentage:3.0f}%'), TimeElapsedColumn(),
            TextColumn('ETA {task.fields[eta]}'), TextColumn('{task.description}', markup=False),
            console=self.console, disable=not self.console.is_terminal, transient=True,
        )
        self.task = self.bar.add_task(title, total=None, count='', eta='–')

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        self.said = time.monotonic()
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def plan(self, work: float, cells: int) -> None:
        self.total = self.left = work
        self.cells, self.started = cells, time.monotonic()
        self.bar.update(self.task, total=work)

    def skip(self, work: float) -> None:
        self.finished += 1
        self.left -= work
        self._show('')

    def begin(self, title: str, work: float) -> None:
        self.cell_left = work
        self._show(title)

    def advance(self, title: str, work: float, done_before: float, metrics: dict[str, Any]) -> None:
        """Count work of the current cell, and work that was found done when the cell began."""
        done_before = min(done_before, self.cell_left)
        work = min(work, self.cell_left - done_before)
        self.cell_left -= work + done_before
        self.left -= work + done_before
        self.worked += work
        rate = self.worked / max(1e-9, time.monotonic() - self.started)
        text = (
            f'{title} · step {metrics["step"]}/{metrics["steps"]} · loss {metrics["ce"]:.3f} · '
            f'{rate:,.0f} tokens/s · load {metrics["load_max"]:.1f} · '
            f'dropped {metrics["dropped"]:.0%}'
        )
        self._show(text)
        if not self.console.is_terminal and time.monotonic() - self.said >= QUIET_SECONDS:
            self.say(f'{text} · ETA {self.eta()}')

    def finish(self, title: str, seconds: float) -> None:
        self.finished += 1
        self.left -= self.cell_left
        self.worked += self.cell_left
        self.cell_left = 0.0
        self.say(f'[{self.finished}/{self.cells}] {title}: {seconds:.1f} s, ETA {self.eta()}')
        self._show('')

    def eta(self) -> str:
        """Time left at this process's mean rate, as m:ss or h:mm:ss."""
        elapsed = time.monotonic() - self.started
        if not self.worked or elapsed < 1:
            return '–'
        minutes, seconds = divmod(max(0, int(self.left * elapsed / self.worked)), 60)
        hours, minutes = divmod(minutes, 60)
        return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'

    def _show(self, description: str) -> None:
        self.bar.update(
            self.task, completed=self.total - self.left, description=description,
            count=f'{self.finished}/{self.cells}', eta=self.eta(),
        )
