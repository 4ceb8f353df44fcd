"""Every figure of the report and the graded table, from finished runs.

    python -m figures train --seeds 3       train what is missing
    python -m figures train vae --zdim 2 5 10 20 50     a sweep: a script's options, several values
    python -m figures plot --x zdim --y likelihood.neg_log_px_nats      plot what runs reached
    python -m figures draw                  draw all figures and write a gallery
    python -m figures check                 grade every run
    python -m figures export runs.csv       write the table of all runs

`python -m figures draw --help` lists the options of `draw`, and so on.
"""

import inspect
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

if not __package__:  # called as a file, without -m
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import tyro

from datasets import Source
from figures import cluster, sweeps
from figures.checks import check
from figures.export import check_file, export
from figures.gallery import START, draw_figures, draw_strip, write_page
from figures.kinds import KINDS, NEEDED
from figures.recipes import draw_recipes
from figures.recorded import merged, read_recorded
from figures.report import FIGURES
from figures.reported import read_reported
from figures.runs import Runs, chosen_run, find_runs, newest_of_kind, unfinished_message
from figures.trainings import check_data, missing_trainings, train
from harness import cli
from harness.devices import n_cores, select_device
from harness.errors import UsageError, UserError
from harness.files import may_replace

QUICK_RUNS = Path("runs/quick")


# --- Command lines
@dataclass
class Stored:
    """The runs that a command reads."""

    runs: Path = Path("runs")  # holds the run folders
    # also read the runs in this file, which `export FILE.jsonl` wrote; they have no pictures
    recorded: Path | None = None

    def __post_init__(self):
        if self.runs.exists() and not self.runs.is_dir():
            raise ValueError(f"--runs {self.runs} is a file, not a folder")

    def find(self, chosen: Iterable = ()) -> tuple[Runs, list[str]]:
        """All runs, `chosen` ones among them, and messages about unreadable ones.

        Raises:
            UserError: there is no such folder or file, or the file is damaged.
        """
        alone = self.recorded is None and not chosen
        if not self.runs.is_dir() and (alone or self.runs not in (Path("runs"), QUICK_RUNS)):
            raise UserError(f"there is no folder {self.runs}: name that of the runs with --runs")
        found, messages = find_runs(self.runs)
        by_hand = {run.folder.resolve() for run in chosen}
        found = [run for run in found if run.folder.resolve() not in by_hand]
        found += chosen
        if self.recorded is not None:
            found = merged(found, read_recorded(self.recorded))
        return found, messages


@dataclass
class Chosen:
    """Runs to draw instead of the newest of their kinds."""

    vae: Path | None = None  # a VAE of any size
    manifold: Path | None = None  # a VAE with 2 latent dimensions
    vae_report: Path | None = None  # a VAE by the report's computation
    larochelle: Path | None = None  # a VAE on Larochelle's bits
    gan: Path | None = None  # a GAN
    gan_report: Path | None = None  # a GAN by the report's computation
    nf: Path | None = None  # a flow
    nf_report: Path | None = None  # a flow by the report's computation


@dataclass
class Draw(Stored):
    """Draw the figures of the report, and write a gallery that shows them with the graded table.

    Example: python -m figures draw --only fig07 --manifold runs/vae-z2-seed0
    """

    out: Path | None = None  # holds README.md and report/ (None: figures in --runs)
    quick: bool = False  # draw what `train --quick` trained: --runs is runs/quick
    only: str = ""  # draw only the figures whose names start like this, and no gallery
    chosen: tyro.conf.OmitArgPrefixes[Chosen] = field(default_factory=Chosen)

    def __post_init__(self):
        if self.quick and self.runs == Path("runs"):
            self.runs = QUICK_RUNS
        super().__post_init__()
        self.out = self.out or self.runs / "figures"


@dataclass
class Trains(Stored):
    """What all trainings need."""

    quick: ClassVar[bool] = False

    seeds: int = 1  # train seeds 0 to this less 1 of each
    # trainings to run side by side (None: all on CUDA, one per core on a CPU). On a CPU they share
    # the cores. On one GPU their kernels overlap only if NVIDIA's MPS daemon already runs.
    jobs: int | None = None
    # submit to a SLURM cluster, with these parameters of submitit, say partition=gpu
    # gpus_per_node=1 time=120 (minutes)
    slurm: tuple[str, ...] | None = None
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"  # auto: CUDA, else MPS, else the CPU
    data: tyro.conf.OmitArgPrefixes[Source] = field(default_factory=Source)

    def __post_init__(self):
        super().__post_init__()
        if self.seeds < 1 or self.jobs is not None and self.jobs < 1:
            raise ValueError("--seeds and --jobs must be at least 1")
        if self.jobs is not None and self.slurm is not None:
            raise ValueError("--jobs is for this machine; with --slurm use array_parallelism=N")
        for word in self.slurm or ():
            cluster.parameter(word)


@dataclass
class Train(Trains):
    """Train the runs that the report needs and --runs has not; an interrupted `train` resumes.

    `train vae`, `train gan` and `train nf` sweep a script's options instead: `train vae --help`.

    Example: python -m figures train --kinds vae nf --seeds 3
    """

    kinds: tuple[Literal[*KINDS], ...] = NEEDED  # what to train
    quick: bool = False  # a fraction of the length; --runs is runs/quick

    def __post_init__(self):
        if self.quick and self.runs == Path("runs"):
            self.runs = QUICK_RUNS
        super().__post_init__()
        self.kinds = tuple(dict.fromkeys(self.kinds))
        if not self.kinds:
            raise ValueError(f"--kinds needs some of {', '.join(KINDS)}")


@dataclass
class Sweep(Trains):
    """Train a script with every combination of the values of its options.

    Any option of the script that is not listed here may have several values, with spaces between
    them. The same command again trains what is missing and resumes what was interrupted.

    Example: python -m figures train vae --zdim 2 5 10 20 50 --lr 1e-3 3e-4 --seeds 3
    """

    kind: tyro.conf.Suppress[str] = ""
    grid: tyro.conf.Suppress[tuple[tuple[str, ...], ...]] = ()


@dataclass
class Plot(Stored):
    """Plot numbers of finished runs against a setting: means over seeds, and their range.

    Example: python -m figures plot --x zdim --y likelihood.neg_log_px_nats latent.active_units
    """

    x: str = "zdim"  # a setting of the script
    # what to plot, a panel each: "part.key" of result.json, or the last value of a metric
    y: tuple[str, ...] = ("likelihood.neg_log_px_nats",)
    out: Path | None = None  # the PNG, with a PDF beside it (None: Y-by-X.png in --runs)

    def __post_init__(self):
        super().__post_init__()
        if not self.y:
            raise ValueError("--y needs at least one number")
        if self.out is None:
            self.out = self.runs / f"{'-'.join(self.y)}-by-{self.x}.png"
        if self.out.suffix != ".png" or self.out.is_dir():
            raise ValueError(f"--out {self.out} must end in .png")


@dataclass
class Check(Stored):
    """Grade every run; exit status 0 only if there is one and none falls short.

    Example: python -m figures check --runs runs/vae-z20-seed0
    """

    # grade the numbers in this .jsonl or .csv file instead
    file: tyro.conf.Positional[Path | None] = None


@dataclass
class Export(Stored):
    """Write the table of all runs, or the runs themselves.

    Example: python -m figures export runs.csv
    """

    # .csv or .json: the table; .tex: the means of each kind; .jsonl: the finished runs, for
    # --recorded
    file: tyro.conf.Positional[Path] = tyro.MISSING

    def __post_init__(self):
        super().__post_init__()
        check_file(self.file)


Command = Draw | Train | Plot | Check | Export


def parse(words: list[str] | None = None) -> Command:
    """The command of a command line; None is sys.argv's."""
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["train"] and words[1:2] and words[1] in sweeps.SWEPT:
        kind = words[1]
        ours, options = sweeps.split_words(kind, words[2:])
        hint = f"The script's own options: python {KINDS[kind].script} --help"
        description = f"{inspect.getdoc(Sweep)}\n\n{hint}"
        command = cli.parse(Sweep, ours, f"python -m figures train {kind}", description)
        command.kind, command.grid = kind, sweeps.grid(kind, options)
        return command
    return cli.parse(Command, words, "python -m figures", __doc__.splitlines()[0])


# --- Commands
def main(command: Command) -> None:
    """Run a command."""
    match command:
        case Draw():
            draw(command)
        case Train():
            train_missing(command, command.kinds)
        case Sweep():
            train_missing(command, (command.kind,), command.grid)
        case Plot():
            plot(command)
        case Check():
            reported = command.file is not None
            found = ([read_reported(command.file)], []) if reported else command.find()
            sys.exit(check(*found))
        case Export():
            found, messages = command.find()
            messages += [unfinished_message(run) for run in found if not run.finished]
            groups = {name: newest_of_kind(found, kind) for name, kind in KINDS.items()}
            export(command.file, found, groups)
            cli.complain(messages)


def draw(command: Draw) -> None:
    """Draw figures; without --only all of them, and write the gallery.

    Raises:
        UserError: a figure could not be drawn.
    """
    if command.out.exists() and not command.out.is_dir():
        raise UserError(f"--out {command.out} is a file, not a folder")
    figures = [figure for figure in FIGURES if figure.name.startswith(command.only)]
    if not figures:
        names = ", ".join(figure.name for figure in FIGURES)
        raise UsageError(f"--only {command.only}: the figures are {names}")
    chosen = {
        name: chosen_run(name, KINDS[name], folder)
        for name, folder in vars(command.chosen).items()
        if folder is not None
    }
    found, messages = command.find(list(chosen.values()))
    messages += [unfinished_message(run) for run in found if not run.finished]
    groups = {name: newest_of_kind(found, kind) for name, kind in KINDS.items()}
    groups |= {name: [run] for name, run in chosen.items()}
    if command.only:
        shown = [figure for figure in figures if groups[figure.kind]]
    else:
        shown = [run for run in found if run.finished]
    if not shown:
        places = [str(place) for place in (command.runs, command.recorded) if place is not None]
        hint = f"no finished run in {' or '.join(places)}; `python -m figures train` makes them"
        raise UserError("; ".join([*messages, hint]))
    page, report = command.out / "README.md", command.out / "report"
    is_gallery = may_replace(page, START)
    if not command.only and not is_gallery:
        raise UserError(f"{page} is no gallery: choose another folder with --out")
    if report.is_dir() and not (page.exists() and is_gallery) and not _has_only_figures(report):
        raise UserError(f"{report} holds files of others: choose another folder with --out")
    drawn, missing = draw_figures(figures, groups, report, command.quick)
    if not command.only:
        try:
            draw_strip(groups, report)
        except UserError as error:
            missing.append(f"strip: {error}")
        if not command.quick:
            draw_recipes(report)
        absent = _without_runs(command, groups)
        write_page(command.out, drawn, groups, found, missing + absent, command.quick)
        if not chosen:  # whoever names runs wants their figures
            missing += absent
        cli.complain(messages)
    cli.complain(missing)
    print(f"figures in {report}: {len(drawn)}")
    if missing:
        raise UserError(f"not all figures could be drawn: {len(missing)} reasons above")


def plot(command: Plot) -> None:
    """Plot numbers of the runs against a setting.

    Raises:
        UserError: another file is where the plot goes, or no run has the setting and a number.
    """
    out = command.out
    if not may_replace(out, sweeps.START) or out.with_suffix(".pdf").exists() > out.exists():
        raise UserError(f"{out} or its .pdf is there and is no plot of ours: name another file")
    found, messages = command.find()
    cli.complain(messages)
    cli.complain(sweeps.draw(out, found, command.x, command.y))
    print(out)


def _has_only_figures(report: Path) -> bool:
    """Whether a folder holds nothing but what `draw --only` writes; an empty one does."""
    names = {figure.name for figure in FIGURES}
    return all(path.stem.removesuffix("-short") in names for path in report.iterdir())


def train_missing(
    command: Trains, kinds: Iterable[str], grid: Iterable[tuple[str, ...]] = ((),)
) -> None:
    """Train the missing seeds of each kind, with each of the options in the grid of a sweep.

    Raises:
        UserError: a training has failed.
        DataError: the images cannot be read, or the download has failed.
    """
    command.runs.mkdir(parents=True, exist_ok=True)
    found, _ = command.find()
    source = command.data
    missing = missing_trainings(found, kinds, command.seeds, command.quick, source.dataset, grid)
    if not missing:
        print(f"nothing is missing in {command.runs}")
        return
    options = ["--device", command.device]
    if source.data_dir is not None:
        options += ["--data_dir", str(source.data_dir)]
    if source.val_fraction is not None:
        options += ["--val_fraction", str(source.val_fraction)]
    check_data(missing, source)
    if command.slurm is not None:
        parameters = dict(map(cluster.parameter, command.slurm))
        cluster.submit(missing, command.runs, options, parameters)
        return
    side_by_side = {"cuda": len(missing), "cpu": n_cores()}
    n_jobs = command.jobs or side_by_side.get(select_device(command.device).type, 1)
    try:
        train(missing, command.runs, options, n_jobs)
    except KeyboardInterrupt as error:
        error.add_note(f"the runs are in {command.runs}; the same command resumes them")
        raise
    what = "export FILE.csv" if isinstance(command, Sweep) else "draw"
    make = _words(what, command)
    print(f"the runs are in {command.runs}; {what.partition(' ')[0]} them with: {make}")


def _without_runs(command: Draw, groups: dict[str, Runs]) -> list[str]:
    """For each kind without a run its figures, and the command that trains one."""
    messages = []
    for name in NEEDED:
        if not groups[name]:
            figures = ", ".join(figure.name for figure in FIGURES if figure.kind == name)
            make = _words("train", command, "--kinds", name)
            messages.append(
                f"{figures}: no finished run of the default settings; draw one of yours with "
                f"--{name} RUN, or make one with: {make}"
            )
    return messages


def _words(name: str, command: Draw | Trains, *options: str) -> str:
    """The command line of another command on the same runs."""
    words = ["python", "-m", "figures", *name.split(), *options, "--runs", str(command.runs)]
    return shlex.join(words + ["--quick"] * command.quick)


if __name__ == "__main__":
    cli.run(main, parse)
