"""Command lines: words to settings, errors in one line, exit statuses."""

import contextlib
import io
import os
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
    raise UsageError(f"{_unframed(errors.getvalue())} (--help lists the options)")


def _unframed(text: str) -> str:
    """What is wrong, from tyro's message: a title, and parts between rules in a frame.

    The frame is of box-drawing characters, or of spaces and hyphens where the encoding has none.
    The first part says what is wrong; it names the class or group whose bounds are broken, but the
    words after that name the option.
    """
    _title, *cells = (line.strip("│╭╮╰╯ ") for line in text.strip().splitlines())
    parts = [[]]
    for cell in cells:
        if cell.strip("─-"):
            parts[-1].append(cell)
        else:
            parts.append([])
    first = next((" ".join(part) for part in parts if part), text)
    return re.sub(r"^Error parsing \w+: ", "", " ".join(first.split()))


def run(main: Callable[[Any], None], parse_words: Callable[[], Any]) -> None:
    """Call main(parse_words()) and exit with a status.

    User errors print one line to stderr and exit with status 1, or 2 for a wrong command line.
    A signal that stops it exits with status 128 + its number: 130 for Ctrl-C, 143 for SIGTERM.
    """
    interrupts.raise_interrupted()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that can't be printed ends no run
            stream.reconfigure(errors="backslashreplace")
    try:
        main(parse_words())
    except (UserError, DataError) as exception:
        status = 2 if isinstance(exception, UsageError) else 1
        error, message = exception, f"error: {exception}"
    except BrokenPipeError:  # whoever read the output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
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
