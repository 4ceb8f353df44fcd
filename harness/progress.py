"""Progress bars, and how often a training may pause for a side job."""

import contextlib
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm


class _Bar(tqdm):
    """A bar that rounding never moves beyond its end, of which tqdm would warn."""

    def update(self, n: float = 1) -> bool | None:
        return super().update(min(n, self.total - self.n))


def progress_bar(total: float, initial: float = 0, **options) -> tqdm:
    """A tqdm bar in any unit: live on a terminal, one line every 30 seconds in a log file."""
    return _Bar(
        total=total,
        initial=initial,
        mininterval=0.2 if sys.stderr.isatty() else 30,
        bar_format="{desc} |{bar}| {percentage:3.0f}% [{elapsed}<{remaining}]{postfix}",
        dynamic_ncols=True,
        **options,
    )


class Pace:
    """Spaces out a repeated job, so that after the first it takes at most a share of the time.

    Args:
        share: the share of the time, for example 0.01.
        seconds: the least time before the first job, and between two of them.
    """

    def __init__(self, share: float, seconds: float = 0.0):
        self.share, self.seconds = share, seconds
        self._next = time.perf_counter() + seconds

    def due(self) -> bool:
        """Whether the job may run now."""
        return time.perf_counter() >= self._next

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Run the job in this block; the next one may run after a pause that fits the share."""
        started = time.perf_counter()
        try:
            yield
        finally:
            finished = time.perf_counter()
            self._next = finished + max(self.seconds, (finished - started) / self.share)
