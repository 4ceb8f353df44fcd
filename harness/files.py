"""Files that are whole or absent, and locks on folders."""

import contextlib
import errno
import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from harness import interrupts

try:
    import fcntl
except ImportError:  # Windows has no locks on folders
    fcntl = None

PARTIAL = ".partial"  # ends the names of temporary files


@interrupts.delayed()
def write_whole(
    path: Path,
    write: Callable[[BinaryIO], Any],
    previous: Path | None = None,
    flush: bool = True,
) -> None:
    """Call write(file) on a new temporary file, flush it to disk and rename it to `path`.

    Args:
        path: the file's name, taken only when the content is complete.
        write: writes the content.
        previous: the new name of the file that stood at `path`, if it is to be kept.
        flush: wait until the disk has the content. That can take seconds on a busy disk; without
            it, a power failure may leave an empty file, a killed process does not.

    Raises:
        OSError: the disk is full, the folder is gone, ...; its filename is `path`. What `write`
            raises for other reasons stays as it is.
    """
    # New and exclusive: a file or link that is there already is never written to.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    failed = []
    try:
        with open(partial, "xb") as file:
            write(_Watched(file, failed))
            if flush:
                file.flush()
                os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        # torch.save hides the failed write behind a RuntimeError.
        failure = failed[0] if failed else error
        is_of_file = isinstance(failure, OSError) and failure.filename in (None, str(partial))
        if not is_of_file:
            raise
        raise OSError(failure.errno, failure.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


class _Watched:
    """A file that adds the failures of its writes to a list."""

    def __init__(self, file: BinaryIO, failed: list[OSError]):
        self._file, self._failed = file, failed

    def write(self, data) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self._failed.append(error)
            raise

    def __getattr__(self, name):
        return getattr(self._file, name)


def remove_partial(folder: Path) -> None:
    """Remove what killed processes have left of files in `folder` that they were writing."""
    for path in folder.glob(f"*.????????{PARTIAL}"):
        path.unlink(missing_ok=True)


def read_regular(path: Path) -> bytes:
    """The content of a regular file; a FIFO would wait for a writer, a device may never end.

    Raises:
        OSError: it is missing, unreadable, or another kind of file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.read_bytes()


def may_replace(path: Path, ours: str) -> bool:
    """Whether nobody loses anything if `path` is written: it is new, empty, or a file of ours.

    Args:
        path: may be missing; what is no regular file may not be replaced, nor may a dangling link.
        ours: a regular expression that matches the start of what we write there.
    """
    if not path.exists():
        return not path.is_symlink()
    try:
        content = read_regular(path)
    except OSError:
        return False
    return not content or re.match(ours.encode(), content, re.DOTALL) is not None


def check_writable(folder: Path) -> None:
    """Find out before the work whether files can be written to `folder`; leaves none.

    Raises:
        OSError: they cannot; its filename is `folder`.
    """
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON with `write_whole`."""
    write_whole(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))


def try_lock(folder: Path) -> int | None:
    """Lock `folder` for this process until `unlock`, or until it ends.

    Returns:
        The descriptor that holds the lock; None where the file system has no locks.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def unlock(descriptor: int | None) -> None:
    """Give up what `try_lock` returned."""
    if descriptor is not None:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of `folder`: whether it trains there."""
    try:
        descriptor = try_lock(folder)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    unlock(descriptor)
    return False
