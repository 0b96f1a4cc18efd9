"""Let a library's own threads finish before Ctrl-C is heard.

Orbax reads and writes in an event loop: an exception raised into it leaves threads that speak to a
closed loop, and they print tracebacks where a person had only pressed Ctrl-C.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM until the block ends; a second Ctrl-C is heard at once.

    What was held back then goes to the handler that stood before. Outside the main thread, where
    Python delivers no signals, the block runs as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    heard = False

    def hold(number: int, frame: object) -> None:
        del frame
        nonlocal heard
        held.append(number)
        if held.count(signal.SIGINT) > 1:
            heard = True
            raise KeyboardInterrupt

    # A signal whose handler was not installed from Python (None), or that is ignored, is let be.
    before = {number: handler for number in (signal.SIGINT, signal.SIGTERM)
              if (handler := signal.getsignal(number)) not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, hold)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        # Also where the block failed: whoever handles its error must not miss the signal.
        for number in dict.fromkeys(held):
            if not (heard and number == signal.SIGINT):
                signal.raise_signal(number)
