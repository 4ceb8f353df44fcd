"""The settings that all scripts share, from the command line or from an earlier run."""

import dataclasses
import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch.nn as nn
import tyro

from datasets import Source, image_shape
from harness import checkpoints, cli, records
from harness.errors import UsageError, UserError

# What --resume and --evaluate may change of a run's settings. All else stays as it was.
MAY_GROW = {"epochs", "n_epochs"}
MAY_DIFFER = {
    "device",
    "graph",
    "tensorboard",
    "data_dir",
    "download",
    "proposal",
    "importance_samples",
    "quality_samples",
}
OF_COMMAND = {"resume", "evaluate"}  # belong to a command, not to its run


@dataclass(frozen=True)
class RunOptions:
    """Where a run happens and where its files go."""

    seed: int = 0  # seed of all random numbers
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"  # auto: CUDA, else MPS, else the CPU
    graph: bool = True  # on CUDA: replay captured graphs of a step instead of single kernels
    tensorboard: bool = False  # also write TensorBoard event files to the run folder
    # the run folder; never overwrites: appends -2, -3, ... (None: runs/, named after the settings)
    out: Path | None = None
    # continue the interrupted run in this folder with its own settings; its epochs may grow unless
    # its learning rate is scheduled over them
    resume: Path | None = None
    evaluate: Path | None = None  # evaluate the finished run in this folder again

    def __post_init__(self):
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed must be at least 0 and below 2^32, not {self.seed}")
        if self.out == Path():
            raise ValueError("--out: the name of the folder is empty")
        for name in ("out", "resume", "evaluate"):  # shells leave the tilde of --out=~/x alone
            if (folder := getattr(self, name)) is not None:
                object.__setattr__(self, name, Path(os.path.expanduser(folder)))
        if self.resume is not None and self.evaluate is not None:
            raise ValueError("--resume, --evaluate: one at a time")


@dataclass
class RunConfig:
    """The settings that every script has; a script's `Config` adds its own.

    A field's comment is its text in `--help`. `__post_init__` raises ValueError beyond bounds.
    """

    NAME: ClassVar[str]  # how the names of its run folders begin
    SCRIPT: ClassVar[str]  # the script whose references grade the run
    EXAMPLE: ClassVar[str]  # a command line, for --help
    REPORT: ClassVar[dict[str, Any]]  # what --protocol report sets

    # report: train and count as the course report did
    protocol: Literal["standard", "report"] = "standard"
    quality_samples: int = 10_000  # generated images to compare with real ones; 0 for none
    data: tyro.conf.OmitArgPrefixes[Source] = field(default_factory=Source)
    run: tyro.conf.OmitArgPrefixes[RunOptions] = field(default_factory=RunOptions)

    def __post_init__(self):
        self._image_shape = None  # as the run of these settings recorded it
        for name, value in self.flat().items():
            if isinstance(value, int) and abs(value) >= 2**63:
                raise ValueError(f"--{name} is too large")
        if self.quality_samples != 0 and self.quality_samples < 100:
            raise ValueError("--quality_samples must be 0 or at least 100")

    @property
    def name(self) -> str:
        """The name of the run folder: gan-seed0, or with what is not the default."""
        choices = (self.data.name, self.protocol)
        others = [choice for choice in choices if choice not in ("mnist", "standard")]
        return "-".join([self.NAME, *others, f"seed{self.run.seed}"])

    @property
    def may_grow(self) -> bool:
        """Whether a run may go on for more epochs than it was started for.

        Not if its schedule depends on how many there are: the rates so far would have been others.
        """
        return True

    @classmethod
    def parse(cls, words: list[str] | None = None) -> Self:
        """The settings on a command line; with --resume or --evaluate, those of that run.

        The words are parsed once to find --resume, --evaluate and --protocol, then again with the
        defaults that these imply: a run's settings, or the report's. What the words change of these
        must be allowed.

        Args:
            words: the command line; None is sys.argv's.

        Raises:
            UsageError: the command line is wrong, or disagrees with the run.
            UserError: there is no such run, or it is finished (to resume) or not (to evaluate).
        """
        config = cls._parse(words)
        folder = config.run.resume or config.run.evaluate
        if folder is not None:
            earlier = cls.of(folder)
            config = cls._parse(words, earlier)
            _check_run(folder, earlier, config)
        elif config.protocol == "report":
            report = dataclasses.replace(cls(), protocol="report", **cls.REPORT)
            config = cls._parse(words, report)
        config.check_protocol()
        return config

    def check_protocol(self) -> None:
        """Raise UsageError if a setting is not what `--protocol report` sets it to."""
        for name, value in self.REPORT.items():
            if self.protocol == "report" and getattr(self, name) != value:
                raise UsageError(f"--protocol report sets --{name} to {value}: leave it out")

    @classmethod
    def program(cls) -> str:
        """The name of the file with the class: SCRIPT, or that of a changed copy."""
        return cls._file().name

    @classmethod
    def checksum(cls) -> str:
        """The SHA-256 of the file with the class."""
        return hashlib.sha256(cls._file().read_bytes()).hexdigest()

    @classmethod
    def _file(cls) -> Path:
        return Path(sys.modules[cls.__module__].__file__).resolve()

    @classmethod
    def of(cls, folder: Path | str) -> Self:
        """The settings of a run.

        Raises:
            UserError: this is no run of the script, or its settings are damaged.
        """
        recorded = records.read_config(folder, cls.program())
        config = cls.of_dict(recorded["settings"], Path(folder) / "config.json")
        if newer := sorted(config.flat().keys() - recorded["settings"].keys()):
            print(f"{folder}: no {', '.join(newer)} recorded: read as the default", file=sys.stderr)
        config._image_shape = records.image_shape(recorded)
        return config

    @classmethod
    def of_dict(cls, settings: Mapping[str, Any], source: Path | str) -> Self:
        """The settings that `flat` returned and JSON has kept.

        They are parsed like options, so that a damaged one is an error like any other.

        Args:
            settings: by name.
            source: the file they come from, for the error.

        Raises:
            UserError: no command line could have set them.
        """
        words = []
        for name, value in settings.items():
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no_{name}")
            elif value is not None:
                words.append(f"--{name}={value}")
        try:
            if unknown := settings.keys() - cls().flat().keys():
                raise UsageError(f"there is no setting {min(unknown)!r}")
            return cls._parse(words)
        except UsageError as error:
            raise UserError(f"{source}: {error}") from error

    @classmethod
    def _parse(cls, words: list[str] | None, defaults: Self | None = None) -> Self:
        description = f"{cls.__doc__}\n\nExample: {cls.EXAMPLE}"
        return cli.parse(cls, words, cls.SCRIPT, description, defaults)

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of the images: recorded by an earlier run, or read from the data.

        Raises:
            DataError: they cannot be read.
        """
        if self._image_shape is None:
            self._image_shape = image_shape(self.data)
        return self._image_shape

    @property
    def n_pixels(self) -> int:
        """Pixels of an image."""
        height, width = self.image_shape
        return height * width

    def flat(self) -> dict[str, Any]:
        """All settings by their names, those of the groups among them; paths as text."""
        values = vars(self) | vars(self.data) | vars(self.run)
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in values.items()
            if name not in {"data", "run", *OF_COMMAND} and not name.startswith("_")
        }

    def load_weights(self, folder: Path | str, make: Callable[[], nn.Module]) -> nn.Module:
        """The model that make() returns with the weights of a finished run, in evaluation mode.

        Raises:
            UserError: the weights are missing, damaged, or do not fit the model.
        """
        return checkpoints.load_weights(folder, make)


def _check_run(folder: Path, earlier: RunConfig, config: RunConfig) -> None:
    """Compare what --resume or --evaluate of a run asks for with the run itself."""
    mode = "resume" if config.run.resume else "evaluate"
    grown, settings = False, earlier.flat()
    for name, value in config.flat().items():
        before = settings[name]
        if value == before or name in MAY_DIFFER:
            continue
        if name not in MAY_GROW or mode != "resume":
            raise UsageError(
                f"--{mode} {folder}: its --{name} is {before}, not {value}: "
                "a run keeps its settings"
            )
        if value < before:
            raise UsageError(
                f"--{mode} {folder}: the run has --{name} {before}, which may only grow"
            )
        if not earlier.may_grow:
            raise UsageError(
                f"--{mode} {folder}: its learning rate is scheduled over --{name} {before}, so it "
                "cannot go on after that: start a new run"
            )
        grown = True
    finished = (folder / "result.json").exists()
    if mode == "resume" and finished and not grown:
        way_on = ": it resumes only with more epochs" if earlier.may_grow else ""
        raise UserError(f"{folder} is finished{way_on}")
    if mode == "evaluate" and not finished:
        raise UserError(f"{folder} is unfinished: finish it with --resume {folder} first")
