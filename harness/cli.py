"""Command lines: the options all scripts share, --resume and --evaluate, errors in one line."""

import argparse
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from datasets import DATASETS, DEFAULT_FOLDER, DataError
from harness import records
from harness.errors import Interrupted, UsageError, UserError
from harness.files import STOP_SIGNALS

# On the command line of a run, but none of its settings.
NO_SETTINGS = ("script", "resume", "evaluate", "generate", "n")
OF_GENERATION = {"generate", "n", "seed", "device"}  # what --generate reads
MAY_GROW = ("epochs", "n_epochs")  # settings that --resume may raise
# Settings it may change: where the run goes on, where its data lie, how it is evaluated.
MAY_DIFFER = (
    "device",
    "data_dir",
    "download",
    "no_graph",
    "tensorboard",
    "proposal",
    "importance_samples",
    "quality_samples",
)


def number(
    kind: type,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Callable[[str], float]:
    """An argparse type: an `int` or a `float` within bounds. NaN and infinity never are."""
    bounds = {"at least": at_least, "above": above, "at most": at_most, "below": below}
    words = " and ".join(f"{name} {bound}" for name, bound in bounds.items() if bound is not None)

    def convert(text):
        try:
            value = kind(text)
            finite = math.isfinite(value)
        except (ValueError, OverflowError):
            value, finite = math.nan, False
        within = (
            finite
            and (at_least is None or value >= at_least)
            and (above is None or value > above)
            and (at_most is None or value <= at_most)
            and (below is None or value < below)
        )
        if not within:
            noun = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"must be a {noun}, {words}, not {text!r}")
        return value

    return convert


def none_or_hundreds(text: str) -> int:
    """An argparse type for a number of samples to take statistics of: 0, or at least 100."""
    value = number(int, at_least=0)(text)
    if 0 < value < 100:
        raise argparse.ArgumentTypeError(f"must be 0 or at least 100, not {text!r}")
    return value


class ArgumentParser(argparse.ArgumentParser):
    """argparse with defaults in --help, one line per error, and the options all scripts share."""

    def __init__(self, description: str, prog: str | None = None):
        super().__init__(
            description=description,
            prog=prog and Path(prog).name,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,  # an option added later would make a short form ambiguous
        )

    def add_number(self, flag: str, default: float, help: str, **bounds) -> None:
        """Add an option for a number of the default's type within the bounds of `number`."""
        self.add_argument(flag, type=number(type(default), **bounds), default=default, help=help)

    def add_choice(self, flag: str, choices: Iterable[str], help: str) -> None:
        """Add an option with these choices, the first of which is the default."""
        choices = tuple(choices)
        self.add_argument(flag, choices=choices, default=choices[0], help=help)

    def add_optional_argument(self, flag: str, **options) -> None:
        """Add an option that is None unless given; its help says what that means."""
        self.set_defaults(**{flag.lstrip("-"): None})
        self.add_argument(flag, default=argparse.SUPPRESS, **options)

    def add_training_arguments(
        self, epochs: int, batch_size: int, lr: float, importance_samples: int
    ) -> None:
        """Add the options that the VAE and the flow share, with these defaults."""
        self.add_number("--epochs", epochs, "passes over the training images", at_least=1)
        self.add_number("--batch_size", batch_size, "images per step", at_least=1)
        self.add_number("--lr", lr, "learning rate of Adam", above=0)
        self.add_number(
            "--ema_decay",
            0.999,
            "decay per step of the average of the weights (EMA) that is evaluated; 0 for none",
            at_least=0,
            below=1,
        )
        self.add_number(
            "--importance_samples",
            importance_samples,
            "draws per image for the likelihood of the test split at the end; 0 for none",
            at_least=0,
        )

    def add_data_arguments(self) -> None:
        """Add the options that make a `datasets.Source`."""
        self.add_choice("--dataset", DATASETS, "the images to train on")
        self.add_optional_argument(
            "--data_dir",
            metavar="DIR",
            help="read the data set from DIR: its four IDX files, plain or .gz, there or in "
            "torchvision's folder below it, such as FashionMNIST/raw; for mnist also mnist.npz "
            f"(default: mnist from the copy in datasets/, the others from {DEFAULT_FOLDER}/)",
        )
        self.add_argument(
            "--download",
            action="store_true",
            help="let torchvision fetch a data set that is not there or damaged",
        )

    def add_common_arguments(self) -> None:
        """Add the options that all three scripts share."""
        self.add_number("--seed", 0, "seed of all random numbers", at_least=0, below=2**32)
        self.add_choice(
            "--device",
            ("auto", "cuda", "mps", "cpu"),
            "where to train; auto: CUDA, else MPS, else the CPU",
        )
        self.add_argument(
            "--no_graph",
            action="store_true",
            help="on CUDA: launch kernels one by one instead of replaying a captured graph",
        )
        self.add_data_arguments()
        self.add_argument(
            "--tensorboard",
            action=argparse.BooleanOptionalAction,
            default=False,
            help="write metrics and sample grids to TensorBoard event files in the run folder, too",
        )
        self.add_optional_argument(
            "--out",
            metavar="DIR",
            help="the run folder; a suffix is added if it is taken (default: named after the "
            "settings, in runs/)",
        )
        self.add_optional_argument(
            "--resume",
            metavar="RUN",
            help="continue the stopped run in this folder with its own settings; the number of "
            "epochs may grow",
        )
        self.add_optional_argument(
            "--evaluate",
            metavar="RUN",
            help="evaluate the finished run in this folder again, without training",
        )
        self.add_argument(
            "--quality_samples",
            type=none_or_hundreds,
            default=10_000,
            help="generated images to compare with real ones at the end; 0 for none",
        )

    def parse_args(self, args: list[str] | None = None, out: str = "") -> argparse.Namespace:
        """The parsed command line; with --resume or --evaluate, the settings of that run.

        Its attribute `script` is the file name of the script.

        Those settings pass through the parser like options, so a damaged one is an error like
        any other. An option given beside them must agree, except those that may grow or differ.

        Args:
            args: the words of the command line; None is sys.argv's.
            out: the default of --out, made of settings: "runs/vae-{binarize}-seed{seed}". A part
                between hyphens that is only a setting, here the second, is dropped at its default.

        Raises:
            UsageError: the command line is wrong, or disagrees with the run.
            UserError: there is no such run, or it is finished (to resume) or not (to evaluate).
        """
        parsed = super().parse_args(args)
        parsed.script = self.prog
        if getattr(parsed, "out", None) == "":
            self.error("--out: the name of the folder is empty")
        modes = [
            (flag, Path(value))
            for flag in ("resume", "evaluate", "generate")
            if (value := getattr(parsed, flag, None)) is not None
        ]
        if len(modes) > 1:
            self.error("--resume, --evaluate, --generate: one at a time")
        given = vars(super().parse_args(args, argparse.Namespace(**dict.fromkeys(vars(parsed)))))
        given = {name: value for name, value in given.items() if value is not None}
        mode, folder = modes[0] if modes else (None, None)
        if "n" in given and mode != "generate":
            self.error("--n is only for --generate")
        if mode == "generate" and (unread := given.keys() - OF_GENERATION):
            self.error(f"--generate does not read --{min(unread)}")
        if mode in (None, "generate"):
            if getattr(parsed, "out", "") is None:
                at_default = {
                    f"{{{name}}}"
                    for name, value in vars(parsed).items()
                    if value == self.get_default(name)
                }
                parts = (part for part in out.split("-") if part not in at_default)
                parsed.out = "-".join(parts).format(**vars(parsed))
            return parsed
        run = settings_of(folder, self.prog, super().parse_args)
        grown = self._merge(run, given, mode, folder)
        finished = (folder / "result.json").exists()
        if mode == "resume" and finished and not grown:
            raise UserError(f"{folder} is finished: only with more epochs can it go on")
        if mode == "evaluate" and not finished:
            raise UserError(f"{folder} is unfinished: go on with --resume {folder} first")
        run.resume, run.evaluate, run.script = parsed.resume, parsed.evaluate, self.prog
        return run

    def _merge(self, run: argparse.Namespace, given: dict, mode: str, folder: Path) -> bool:
        """Write the given options into the run's settings; returns whether the run grows."""
        grown = False
        for name, value in given.items():
            if name == mode or value == getattr(run, name):
                continue
            may_grow = mode == "resume" and name in MAY_GROW
            if may_grow and value < getattr(run, name):
                self.error(
                    f"--{mode} {folder}: the run has --{name} {getattr(run, name)}, "
                    "which may only grow"
                )
            if not may_grow and name not in MAY_DIFFER:
                self.error(
                    f"--{mode} {folder}: its --{name} is {getattr(run, name)}, not {value}: "
                    "a run keeps its settings"
                )
            grown = grown or may_grow
            setattr(run, name, value)
        return grown

    def error(self, message: str) -> None:
        """Raise UsageError instead of exiting."""
        raise UsageError(f"{' '.join(message.splitlines())} (--help lists the options)")


def settings_of(folder: Path | str, script: str, parse_args: Callable) -> argparse.Namespace:
    """The arguments of a run of `script`, parsed as options by its `parse_args`.

    Raises:
        UserError: this is no run of the script, or no command line could have set an argument.
    """
    folder = Path(folder)
    config = records.read_config(folder, Path(script).name)
    try:
        if "help" in config["arguments"]:
            raise UsageError("there is no setting 'help'")
        return parse_args(
            [
                f"--{name}" if value is True else f"--{name}={value}"
                for name, value in config["arguments"].items()
                if value is not None and value is not False and name not in NO_SETTINGS
            ]
        )
    except UsageError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from error


def run_script(main: Callable, parse_args: Callable) -> None:
    """Call main(parse_args()) and exit with a status.

    User errors print one line to stderr and exit with status 1, or 2 for a wrong command line.
    A signal that stops it exits with status 128 + its number: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def interrupt(signum, frame):
        raise Interrupted(signum)

    sys.unraisablehook = _signal_again
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:  # nohup and shells' background jobs set it
            signal.signal(signum, interrupt)
    try:
        main(parse_args())
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


def _signal_again(unraisable) -> None:
    """Python ignores exceptions in weakref callbacks: send a signal that arrived there again."""
    if isinstance(unraisable.exc_value, Interrupted):
        again = os.getpid(), unraisable.exc_value.signum
        threading.Timer(0.05, os.kill, again).start()
    else:
        sys.__unraisablehook__(unraisable)


def _is_out_of_memory(exception: Exception) -> bool:
    # On the CPU PyTorch raises a plain RuntimeError.
    words = str(exception)
    return (
        isinstance(exception, MemoryError | torch.OutOfMemoryError)
        or "not enough memory" in words
        or "can't allocate memory" in words
        or "size calculation overflowed" in words
    )
