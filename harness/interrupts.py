"""Signals that stop a program: Ctrl-C, `kill`, and the end of the terminal."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

from harness.errors import Interrupted

# Windows has no SIGHUP.
STOP_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
# Seconds after a signal in which another changes nothing: the second of a double Ctrl-C would cut
# short what the first one starts.
PATIENCE = 1.0
_received = []  # numbers of signals, and the times at which they raised


def raise_interrupted() -> None:
    """From here on, STOP_SIGNALS raise Interrupted, unless they were ignored so far.

    Those within PATIENCE of the last one that raised do not.
    """

    def interrupt(signum, frame):
        now = time.monotonic()
        if not _received or now - _received[-1][1] > PATIENCE:
            _received.append((signum, now))
            raise Interrupted(signum)

    _received.clear()
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:  # nohup and shells' background jobs set it
            signal.signal(signum, interrupt)


def check() -> None:
    """Raise Interrupted if a signal has been received.

    A signal that arrives while Python runs a weakref callback or a finaliser raises there, and
    Python ignores exceptions of those. So every loop over batches checks.
    """
    if _received:
        raise Interrupted(_received[0][0])


def ignore() -> None:
    """From here on, STOP_SIGNALS change nothing: the program says its last words."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


@contextlib.contextmanager
def delayed() -> Iterator[None]:
    """Delay STOP_SIGNALS to the end of the block; an interrupted torch.save may abort."""
    if threading.current_thread() is not threading.main_thread():  # signals arrive only there
        yield
        return
    arrived = []
    handlers = {
        signum: signal.signal(signum, lambda signum, _: arrived.append(signum))
        for signum in STOP_SIGNALS
    }
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        if arrived:
            signal.raise_signal(arrived[0])
