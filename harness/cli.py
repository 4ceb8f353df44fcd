"""Command lines: words to settings, errors in one line, exit statuses."""

import contextlib
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro

from datasets import DataError
from harness import interrupts
from harness.errors import Interrupted, UsageError, UserError


def parse(
    kind: Any,
    words: list[str] | None,
    prog: str,
    description: str | None = None,
    defaults: Any = None,
) -> Any:
    """An object of a dataclass, or of a union of them (subcommands), from a command line.

    Args:
        kind: fields become options; the comment of a field is its text in `--help`.
        words: the command line; None is sys.argv's.
        prog: the program's name in `--help`.
        description: the first lines of `--help`; None is the docstring of `kind`.
        defaults: an object with other defaults than the class has.

    Raises:
        UsageError: the words are wrong; one line says what is.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                kind,
                prog=prog,
                description=description,
                args=words,
                default=tyro.MISSING_NONPROP if defaults is None else defaults,
                use_underscores=True,
                config=(tyro.conf.DisallowNone, tyro.conf.OmitSubcommandPrefixes),
            )
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
    # tyro frames its message. Its first part, above a rule, says what is wrong.
    framed = [line.strip("│ ") for line in errors.getvalue().splitlines() if line.startswith("│")]
    message = " ".join(framed).partition("──")[0]
    # It names the class or group whose bounds are broken; the message names the option.
    message = re.sub(r"^Error parsing \w+: ", "", " ".join(message.split()))
    raise UsageError(f"{message} (--help lists the options)")


def run(main: Callable[[Any], None], parse_words: Callable[[], Any]) -> None:
    """Call main(parse_words()) and exit with a status.

    User errors print one line to stderr and exit with status 1, or 2 for a wrong command line.
    A signal that stops it exits with status 128 + its number: 130 for Ctrl-C, 143 for SIGTERM.
    """

    interrupts.raise_interrupted()
    try:
        main(parse_words())
    except (UserError, DataError) as exception:
        status = 2 if isinstance(exception, UsageError) else 1
        error, message = exception, f"error: {exception}"
    except OSError as exception:
        name = exception.filename or "writing the run"
        error, message, status = exception, f"error: {name}: {exception.strerror or exception}", 1
    except Interrupted as exception:
        error, message, status = exception, "interrupted", 128 + exception.signum
    except (MemoryError, RuntimeError) as exception:
        if not _is_out_of_memory(exception):
            raise
        error, message, status = exception, "error: out of memory: smaller settings need less", 1
    else:
        return
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    notes = getattr(error, "__notes__", [])
    print(f"{name}: " + "; ".join([message, *notes]), file=sys.stderr)
    sys.exit(status)


def _is_out_of_memory(exception: Exception) -> bool:
    # On the CPU PyTorch raises a plain RuntimeError.
    words = str(exception)
    return (
        isinstance(exception, MemoryError | torch.OutOfMemoryError)
        or "not enough memory" in words
        or "can't allocate memory" in words
        or "size calculation overflowed" in words
    )
