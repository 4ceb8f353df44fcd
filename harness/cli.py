"""Command lines: words to settings, errors in one line, exit statuses."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tyro

from datasets import DataError
from harness import escape, interrupts, streams
from harness.errors import Interrupted, UsageError, UserError, is_out_of_memory


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
    words = [_with_home(word) for word in (sys.argv[1:] if words is None else words)]
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


def _with_home(word: str) -> str:
    """The word with the tilde of --out=~/x replaced, which shells leave alone."""
    name, equals, value = word.partition("=")
    is_option = name.startswith("--") and value.startswith("~")
    return name + equals + os.path.expanduser(value) if is_option else word


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
    words = re.sub(r"^Error parsing \w+: ", "", " ".join(first.split()))
    hint = ": a value that starts with a hyphen needs an =, as in --out=-x"
    return words.replace(". Expected 1 values.", hint)


def run(main: Callable[[Any], None], parse_words: Callable[[], Any]) -> None:
    """Call main(parse_words()) and exit with a status.

    User errors print one line to stderr and exit with status 1, or 2 for a wrong command line.
    A signal that stops it exits with status 128 + its number: 130 for Ctrl-C, 143 for SIGTERM.
    Output that nobody can read, as in `| head -1`, is dropped.
    """
    with streams.tolerant():
        interrupts.raise_interrupted()
        try:
            main(parse_words())
        except (Exception, Interrupted) as exception:
            interrupts.ignore()
            message, status = _last_words(exception)
            if message is not None:
                program = Path(sys.argv[0])
                notes = getattr(exception, "__notes__", [])
                name = program.parent.name if program.name == "__main__.py" else program.name
                complain([f"{name or 'python'}: " + "; ".join([message, *notes])])
            sys.exit(status)


def complain(messages: Iterable[str]) -> None:
    """Print messages to stderr, a line each; names and settings in them may be a stranger's."""
    for message in messages:
        print(escape.words(message, escape.MESSAGE), file=sys.stderr)


def _last_words(error: BaseException) -> tuple[str | None, int]:
    """(what to print of an error that ends a program, its exit status); others are raised again."""
    match error:
        case UsageError():
            return f"error: {error}", 2
        case UserError() | DataError():
            return f"error: {error}", 1
        case Interrupted():
            return "interrupted", 128 + error.signum
        case BrokenPipeError():  # whoever read the output has had enough
            return None, 1
        case OSError():
            name = error.filename or "writing the run"
            return f"error: {name}: {error.strerror or error}", 1
    if is_out_of_memory(error):
        return "error: out of memory: smaller settings need less", 1
    raise error
