"""Signals end a program at the next point that is safe, wherever they arrive."""

import signal
import weakref

import pytest

from harness import interrupts
from harness.errors import Interrupted
from harness.interrupts import STOP_SIGNALS


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_raises_and_says_which_it_was(signum):
    signal.signal(signum, signal.SIG_DFL)  # a background job of a shell ignores Ctrl-C
    interrupts.raise_interrupted()
    interrupts.check()
    with pytest.raises(Interrupted) as raised:
        signal.raise_signal(signum)
    assert raised.value.signum == signum
    with pytest.raises(Interrupted):
        interrupts.check()
    interrupts.raise_interrupted()  # another program in the same process
    interrupts.check()


def test_the_second_signal_of_two_does_not_cut_short_what_the_first_starts(monkeypatch):
    interrupts.raise_interrupted()
    with pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    monkeypatch.setattr(interrupts, "PATIENCE", 0)  # whoever waits for long can stop that, too
    with pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGTERM)


def test_signals_that_a_shell_ignores_stay_ignored():
    """As nohup and background jobs ask for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts.raise_interrupted()
    signal.raise_signal(signal.SIGINT)
    interrupts.check()
    with pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_python_ignores_in_a_callback_is_found_by_the_next_check(monkeypatch):
    ignored = []
    monkeypatch.setattr("sys.unraisablehook", ignored.append)
    interrupts.raise_interrupted()

    class Thing:
        pass

    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
    del thing
    assert reference() is None and ignored[0].exc_type is Interrupted
    with pytest.raises(Interrupted) as raised:
        interrupts.check()
    assert raised.value.signum == signal.SIGTERM


def test_signals_wait_for_the_end_of_a_block_and_the_first_counts():
    interrupts.raise_interrupted()
    reached = []
    with pytest.raises(Interrupted) as raised, interrupts.delayed():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        reached.append(True)
    assert reached and raised.value.signum == signal.SIGTERM


def test_an_error_in_a_block_gives_the_signals_back():
    interrupts.raise_interrupted()
    before = [signal.getsignal(signum) for signum in STOP_SIGNALS]
    with pytest.raises(OSError), interrupts.delayed():
        raise OSError
    assert [signal.getsignal(signum) for signum in STOP_SIGNALS] == before
