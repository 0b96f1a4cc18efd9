"""The display counts work; time is a number the test sets."""

import io

import pytest
from rich.console import Console

from moe_jax.study import progress

METRICS = {'step': 3, 'steps': 9, 'ce': 2.5, 'load_max': 1.25, 'dropped': 0.02}


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    return now


def display(terminal=False):
    out = io.StringIO()
    return progress.Display('s', Console(file=out, force_terminal=terminal, width=200)), out


def test_eta_is_the_work_left_at_the_rate_so_far(clock):
    shown, _ = display()
    shown.plan(1000.0, 4)
    assert shown.eta() == '–'
    shown.skip(400.0)
    shown.begin('a', 200.0)
    clock[0] += 10
    assert shown.eta() == '–'  # skipped work says nothing about the speed
    shown.advance('a', 100.0, 0.0, METRICS)
    assert (shown.left, shown.eta()) == (500.0, '0:50')
    clock[0] += 10
    shown.finish('a', 20.0)
    assert (shown.left, shown.eta(), shown.finished) == (400.0, '0:40', 2)


def test_work_found_done_does_not_flatter_the_rate(clock):
    shown, _ = display()
    shown.plan(1000.0, 1)
    shown.begin('a', 1000.0)
    clock[0] += 10
    shown.advance('a', 10.0, 890.0, METRICS)
    assert (shown.worked, shown.left, shown.eta()) == (10.0, 100.0, '1:40')


def test_a_cell_never_counts_for_more_than_its_work(clock):
    shown, _ = display()
    shown.plan(100.0, 2)
    shown.begin('a', 60.0)
    clock[0] += 6
    for _ in range(9):
        shown.advance('a', 20.0, 0.0, METRICS)
    assert shown.left == 40.0
    shown.finish('a', 6.0)
    assert (shown.left, shown.eta()) == (40.0, '0:04')


@pytest.mark.parametrize(('seconds', 'text'), [(0, '0:00'), (59, '0:59'), (61, '1:01'),
                                               (3600, '1:00:00'), (90061, '25:01:01')])
def test_eta_format(clock, seconds, text):
    shown, _ = display()
    shown.plan(seconds + 1.0, 1)
    shown.begin('a', 1.0)
    clock[0] += 1
    shown.finish('a', 1.0)
    assert shown.eta() == text


def test_without_a_terminal_there_are_plain_lines(clock):
    shown, out = display()
    with shown:
        shown.plan(100.0, 2)
        shown.begin('pretrain', 50.0)
        for _ in range(4):
            clock[0] += 25
            shown.advance('pretrain', 1.0, 0.0, METRICS)
        shown.finish('pretrain', 100.0)
        shown.say('[0/0] not markup')
    first, second, third = out.getvalue().splitlines()
    assert first.startswith('pretrain · step 3/9 · loss 2.500') and 'ETA' in first  # after a minute
    assert second.startswith('[1/2] pretrain: 100.0 s, ETA ') and third == '[0/0] not markup'
    assert '\x1b' not in out.getvalue()


def test_on_a_terminal_the_bar_shows_step_loss_speed_and_load(clock):
    shown, out = display(terminal=True)
    with shown:
        shown.plan(100.0, 2)
        shown.begin('uncurl [8]->4', 50.0)
        clock[0] += 2
        shown.advance('uncurl [8]->4', 20.0, 0.0, METRICS)
        shown.bar.refresh()
    for part in ('uncurl [8]->4 · step 3/9', 'loss 2.500', '10 tokens/s', 'load 1.2', 'dropped 2%',
                 'ETA 0:08', '0/2'):
        assert part in out.getvalue()
