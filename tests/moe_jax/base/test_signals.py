"""Signals held back by `unbroken`, flagged by `watch`, raised by `raising`; handlers put back."""

import contextlib
import signal
import threading

import pytest

from moe_jax.base.signals import Interrupted, raising, unbroken, watch


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


@pytest.mark.parametrize('manager', [unbroken, watch, raising])
def test_other_threads_run_as_they_are(manager):
    ran = []

    def work():
        with manager():
            ran.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [signal.default_int_handler]


@pytest.mark.parametrize('manager', [unbroken, watch, raising])
def test_handlers_are_put_back(manager):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with contextlib.suppress(ValueError), manager():
        assert signal.getsignal(signal.SIGINT) is not before[0]
        raise ValueError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_watched_signal_is_named_and_a_second_ctrl_c_raises():
    with watch() as stop:
        assert stop.name is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.name == 'SIGTERM'
    with pytest.raises(KeyboardInterrupt), watch() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.name == 'SIGINT'
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(('number', 'error'), [
    (signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Interrupted)])
def test_a_signal_is_raised_and_raised_again_where_python_dropped_it(number, error):
    with pytest.raises(error), raising() as check_stop:
        check_stop()
        with contextlib.suppress(error):  # as a callback of the garbage collector does
            signal.raise_signal(number)
        check_stop()
        pytest.fail('not raised again')


def test_an_interrupted_process_exits_with_75():
    with pytest.raises(SystemExit, match='stopped') as caught, raising():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 75 and not isinstance(caught.value, Exception)


def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with unbroken():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
