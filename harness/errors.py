"""Exceptions that end a script with one line instead of a traceback."""


class UserError(Exception):
    """An error the user can correct; the message says in one line what is wrong and what to do."""


class UsageError(UserError):
    """A wrong command line."""


class Interrupted(KeyboardInterrupt):
    """A signal, SIGINT from Ctrl-C, SIGTERM or SIGHUP, stopped the script; `signum` says which."""

    def __init__(self, signum: int):
        self.signum = signum
