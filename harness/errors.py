"""Exceptions that end a script with one line instead of a traceback."""

import torch


class UserError(Exception):
    """An error the user can correct; the message says in one line what is wrong and what to do."""


class UsageError(UserError):
    """A wrong command line."""


class Interrupted(KeyboardInterrupt):
    """A signal, SIGINT from Ctrl-C, SIGTERM or SIGHUP, stopped the script; `signum` says which."""

    def __init__(self, signum: int):
        self.signum = signum


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out: of no file can then be said that it is damaged."""
    words = str(error)  # on the CPU PyTorch raises a plain RuntimeError
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "not enough memory" in words
        or "can't allocate memory" in words
        or "size calculation overflowed" in words
    )
