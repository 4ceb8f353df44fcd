"""Required command-line arguments get a usual value, as if they had been typed.

A submission is started without any; what it requires is no fault.
"""

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Sequence

USUAL = {  # by what the argument's name has in it, without punctuation
    r"^n?z$|zdim|dimz|zsize|latent": "20",
    r"hid|width|units": "500",
    r"batch": "64",
    r"epoch": "40",
    r"^lr|lr$|learn": "0.001",
    r"beta1|^b1": "0.5",
    r"beta2|^b2": "0.999",
    r"flow|layer|coupl": "4",
    r"interval|every|freq": "500",
    r"seed|gpu": "0",
    r"device": "cpu",
    r"dir|path|folder|root|out": "out",
    r"data": "mnist",
}
parse_known_args = argparse.ArgumentParser.parse_known_args


def usual_value(name: str, kind: Callable = str, choices: Sequence = ()) -> str:
    """How an argument of this name could be typed: what `kind` takes, of the choices if any.

    Raises:
        ValueError: nothing fits.
    """
    word = re.sub(r"[\W_]", "", name.lower())
    texts = [text for pattern, text in USUAL.items() if re.search(pattern, word)]
    texts += ["train", *map(str, choices)] if choices else ["1", "0.5"]
    for text in texts:
        with contextlib.suppress(Exception):
            value = kind(text)
            if not choices or value in choices:
                return text
    raise ValueError(f"no usual value for {name}")


def _typed(action) -> list[str]:
    """An argument as it would be typed."""
    n = action.nargs if isinstance(action.nargs, int) else 1
    kind, choices = action.type or str, list(action.choices or ())
    values = [usual_value(action.dest, kind, choices)] * n if n else []
    return [*action.option_strings[-1:], *values]


def parse_filled(parser, args=None, namespace=None):
    """`ArgumentParser.parse_known_args` that types what is required if nothing is typed."""
    args = sys.argv[1:] if args is None else list(args)
    if not args:
        required = [a for a in parser._actions if a.required and a.nargs != "*"]
        groups = [g for g in parser._mutually_exclusive_groups if g.required]
        required += [group._group_actions[0] for group in groups]
        # A command takes all that follows, and an option may take what is no option.
        required.sort(key=lambda a: (a.nargs == argparse.PARSER, bool(a.option_strings)))
        for action in required:
            with contextlib.suppress(ValueError):
                args += _typed(action)
    return parse_known_args(parser, args, namespace)


def fill_in_arguments() -> None:
    """From now on, parsers of this process type what is required."""
    argparse.ArgumentParser.parse_known_args = parse_filled
