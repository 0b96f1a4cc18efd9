"""Stop a run on SIGTERM or Ctrl-C between two steps, with its state saved."""

import contextlib
import dataclasses
import logging
import signal
import threading
from collections.abc import Iterator

EXIT_CODE = 75  # EX_TEMPFAIL: run the same command again

log = logging.getLogger(__name__)


class Interrupted(SystemExit):
    """A run was stopped by a signal after `step` steps; uncaught, the process exits with 75.

    Not an Exception: code that records failures and goes on must not take it for one.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(EXIT_CODE)
        self.message, self.step = message, step

    def __str__(self) -> str:
        return self.message


@dataclasses.dataclass
class Stop:
    """The name of the signal that asked for a stop, or None so far."""

    name: str | None = None


@contextlib.contextmanager
def watch() -> Iterator[Stop]:
    """Turn SIGTERM and the first Ctrl-C into `stop.name`; a second Ctrl-C raises at once.

    Only the main thread can do so: elsewhere `stop.name` stays None. Handlers are put back on exit.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: object) -> None:
        del frame
        stop.name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            log.warning('finishing the current step; press Ctrl-C again to stop at once')

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            # None: the handler was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
