"""Signals inside `unbroken`: heard after the block, once, by the handler that stood before."""

import signal
import threading

import pytest

from moe_jax.base.signals import unbroken


@pytest.fixture(autouse=True)
def _python_hears_ctrl_c():
    """As from a terminal: a shell's background jobs are started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_heard_when_the_block_is_done():
    done = []
    with pytest.raises(KeyboardInterrupt), unbroken():
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_is_heard_at_once():
    done = []
    with pytest.raises(KeyboardInterrupt), unbroken():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert not done


def test_sigterm_goes_to_the_handler_that_stood_before():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with unbroken():
            signal.raise_signal(signal.SIGTERM)
            assert not heard
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_exception_of_the_block_is_not_lost():
    with pytest.raises(ValueError, match='ours'), unbroken():
        raise ValueError('ours')


def test_a_signal_held_back_while_the_block_fails_is_heard():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(OSError, match='full'), unbroken():
            signal.raise_signal(signal.SIGTERM)
            raise OSError('full')
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(KeyboardInterrupt) as caught, unbroken():
        signal.raise_signal(signal.SIGINT)
        raise OSError('full')
    assert isinstance(caught.value.__context__, OSError)


def test_other_threads_run_as_they_are():
    ran = []

    def work():
        with unbroken():
            ran.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran


def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with unbroken():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
