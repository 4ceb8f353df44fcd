"""Files that are whole or absent, and locks on folders."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from harness import interrupts

try:
    import fcntl
except ImportError:  # Windows has no locks on folders
    fcntl = None


@interrupts.delayed()
def write_whole(
    path: Path,
    write: Callable[[BinaryIO], Any],
    previous: Path | None = None,
    flush: bool = True,
) -> None:
    """Call write(file) on a temporary file, flush it to disk and rename it to `path`.

    Args:
        path: the file's name, taken only when the content is complete.
        write: writes the content.
        previous: the new name of the file that stood at `path`, if it is to be kept.
        flush: wait until the disk has the content. That can take seconds on a busy disk; without
            it, a power failure may leave an empty file, a killed process does not.

    Raises:
        OSError: the disk is full, the folder is gone, ...; its filename is `path`.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            write(file)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        # torch.save hides the failed write behind a RuntimeError.
        failure = error if isinstance(error, OSError) else error.__context__
        if not isinstance(failure, OSError):
            raise
        raise OSError(failure.errno, failure.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


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
