"""SIGTERM and Ctrl-C in long work: held back while a library is busy, between steps, or at once.

Three ways to treat them, on one way to install handlers:

    unbroken    nothing is heard until the block ends, then by the handlers that stood before
    watch       the block looks at a flag when it is safe to stop; a second Ctrl-C stops it at once
    raising     the block stops where it is, with an exception

Python delivers signals to the main thread alone: in others the blocks run as if there were none.
"""

import contextlib
import dataclasses
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

EXIT_CODE = 75  # EX_TEMPFAIL: run the same command again
NUMBERS = (signal.SIGINT, signal.SIGTERM)

log = logging.getLogger('moe_jax')


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
def unbroken() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM until the block ends; a second Ctrl-C is heard at once.

    What was held back then goes to the handler that stood before. For libraries with threads of
    their own: Orbax reads and writes in an event loop, and an exception raised into it leaves
    threads that speak to a closed loop and print tracebacks.
    """
    held: list[int] = []
    heard = False

    def hold(number: int) -> None:
        nonlocal heard
        held.append(number)
        if held.count(signal.SIGINT) > 1:
            heard = True
            raise KeyboardInterrupt

    # A signal whose handler was not installed from Python (None), or that is ignored, is let be.
    heeded = [number for number in NUMBERS
              if signal.getsignal(number) not in (None, signal.SIG_IGN)]
    try:
        with _handled(hold, heeded):
            yield
    finally:
        # Also where the block failed: whoever handles its error must not miss the signal.
        for number in dict.fromkeys(held):
            if not (heard and number == signal.SIGINT):
                signal.raise_signal(number)


@contextlib.contextmanager
def watch() -> Iterator[Stop]:
    """Turn SIGTERM and the first Ctrl-C into `stop.name`; a second Ctrl-C raises at once."""
    stop = Stop()

    def handle(number: int) -> None:
        stop.name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            log.warning('finishing the current step; press Ctrl-C again to stop at once')

    with _handled(handle):
        yield stop


@contextlib.contextmanager
def raising() -> Iterator[Callable[[], None]]:
    """Raise KeyboardInterrupt at Ctrl-C and `Interrupted` at SIGTERM, wherever the block is.

    Python drops what a handler raises inside a callback of the garbage collector, of which JAX has
    one: the function yielded raises it again.
    """
    caught: list[int] = []

    def check_stop() -> None:
        if signal.SIGINT in caught:
            raise KeyboardInterrupt
        if caught:
            raise Interrupted('stopped by SIGTERM', 0)

    def handle(number: int) -> None:
        caught.append(number)
        check_stop()

    with _handled(handle):
        yield check_stop


@contextlib.contextmanager
def _handled(handle: Callable[[int], None], numbers: Sequence[int] = NUMBERS
             ) -> Iterator[None]:
    """Give these signals to `handle` until the block ends; the handlers before are put back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda number, frame: handle(number))
              for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: the handler was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
