"""Emptying a folder that a submission has filled."""

import itertools
import os
import secrets
from pathlib import Path


def clear(folder: Path) -> None:
    """Empty a folder, however deep it is and whatever permissions it has.

    What lies in a folder moves up before the folder is removed: there is no recursion, and no path
    gets long.
    """
    prefix, numbers = secrets.token_hex(8), itertools.count()
    while entries := list(os.scandir(folder)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for inner in list(os.scandir(entry.path)):
                if inner.is_dir(follow_symlinks=False):
                    os.chmod(inner.path, 0o700)
                os.rename(inner.path, folder / f"{prefix}-{next(numbers)}")
            os.rmdir(entry.path)
