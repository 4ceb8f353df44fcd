"""Standard streams that never end a program: progress and messages can be lost, results cannot."""

import contextlib
import os
import sys
from collections.abc import Iterator


class Tolerant:
    """A text stream that drops what the stream behind it cannot take.

    That may be missing (None), closed, on a full disk, a pipe that nobody reads, or of a narrow
    encoding. After a failure the file behind it is the null device, so that Python's own flush at
    the exit does not fail either.
    """

    def __init__(self, stream):
        self._stream = stream or open(os.devnull, "w")  # noqa: SIM115 (open until the exit)
        if hasattr(self._stream, "reconfigure"):
            self._try(lambda: self._stream.reconfigure(errors="backslashreplace"))

    def write(self, text: str) -> int:
        """Write the text, or drop it."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush, or drop what cannot be written."""
        self._try(self._stream.flush)

    def _try(self, call, *arguments) -> None:
        try:
            call(*arguments)
        except ValueError:  # closed
            pass
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)

    def __getattr__(self, name):
        return getattr(self._stream, name)


@contextlib.contextmanager
def tolerant() -> Iterator[None]:
    """Inside the block stdout and stderr are `Tolerant`.

    Descriptors 0 to 2 that are closed become the null device, or the next file to be opened, a
    checkpoint, say, would take their place and PyTorch's warnings.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(Tolerant, before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
