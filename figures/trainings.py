"""Trains the runs that are missing, each in a process of its own, under one progress bar."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets import N_TRAIN, N_VALIDATION, Source, bmnist, mnist
from figures.kinds import KINDS, Kind
from figures.runs import Runs, StoredRun, find_runs, is_of_kind, read_run
from harness.devices import n_cores
from harness.errors import UserError
from harness.files import is_locked
from harness.progress import progress_bar
from harness.run import candidates

ROOT = Path(__file__).parent.parent
N_IMAGES = N_TRAIN + N_VALIDATION  # in an epoch of the GAN
EVALUATION = 0.05  # the share of a run's time that its evaluation takes, about
POLLING = 1.0  # seconds between two looks at the trainings


class Training(NamedTuple):
    """A run that the report or a sweep needs.

    Attributes:
        kind_name: a key of `kinds.KINDS`.
        seed: its seed.
        quick: a fraction of the full length.
        dataset: one of `datasets.DATASETS`, or the path of someone's own images.
        options: of a sweep: words for the script, instead of those of the kind.
    """

    kind_name: str
    seed: int
    quick: bool = False
    dataset: str = "mnist"
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        # Every swept option, also where the script's own name for a run has it not, or shorter: no
        # two trainings of a grid may have one folder.
        other_data = "" if self.dataset == "mnist" else f"-{Source(self.dataset).name}"
        options = "".join(f"-{word.removeprefix('--').replace('=', '')}" for word in self.options)
        safe = re.sub(r"[^\w.-]", "_", options)
        return f"{self.kind_name}{other_data}{safe}-seed{self.seed}"

    @property
    def kind(self) -> Kind:
        """Its kind of run."""
        kind = KINDS[self.kind_name]
        if not self.options:
            return kind
        swept = kind._replace(flags=" ".join(self.options))
        share = EVALUATION + (1 - EVALUATION) * swept.n_epochs() / kind.n_epochs()
        return swept._replace(minutes=share * kind.minutes)

    @property
    def n_epochs(self) -> int:
        """Its length."""
        return self.kind.n_epochs(self.quick)

    def is_missing(self, found: Runs) -> bool:
        """Whether no finished run is as long as this one; one of the report may be longer.

        A run made without the evaluation at the end counts, too.
        """
        lengths = [run.n_epochs for run in found if run.finished and self._fits(run)]
        if self.options:  # the length may be what is swept
            return self.n_epochs not in lengths
        return max(lengths, default=0) < self.n_epochs

    def unfinished(self, found: Runs) -> StoredRun | None:
        """The newest interrupted run that can resume."""
        for run in reversed(found):
            same = self._fits(run) and run.n_epochs == self.n_epochs
            if same and run.can_resume:
                return run
        return None

    def start_or_resume(self, found: Runs, base: Path) -> tuple[Path, list[str]]:
        """The run folder and the script's options."""
        if run := self.unfinished(found):
            return run.folder, ["--resume", str(run.folder)]
        folder = next(path for path in candidates(base / str(self)) if not path.exists())
        flags = self.kind.options(self.quick)
        flags += ["--dataset", self.dataset, "--seed", str(self.seed), "--out", str(folder)]
        return folder, flags

    def _fits(self, run: StoredRun) -> bool:
        return is_of_kind(run, self.kind, self.dataset) and run.seed == self.seed


def missing_trainings(
    found: Runs,
    kind_names: Sequence[str],
    n_seeds: int,
    quick: bool,
    dataset: str,
    grid: Sequence[tuple[str, ...]] = ((),),
) -> list[Training]:
    """Seeds 0 to n_seeds - 1 of each kind that no finished run has, the longest first.

    With the `grid` of a sweep, that is for the options of each of its points.

    The short ones at the end fill the gaps, so that no core waits for a long one alone.
    """
    seeds = range(n_seeds)
    wanted = [
        Training(name, seed, quick, dataset, options)
        for name in kind_names
        for options in grid
        for seed in seeds
    ]
    missing = [training for training in wanted if training.is_missing(found)]
    return sorted(missing, key=lambda training: -training.kind.minutes)


def check_data(trainings: Iterable[Training], source: Source) -> None:
    """Read, and download if asked, what trainings of a `source` read, before any of them starts.

    Each would find the same fault; side by side they would write the same files.

    Raises:
        DataError: what is there cannot be read, or the download has failed.
    """
    binarized = {training.kind.settings().get("binarize") for training in trainings}
    if "larochelle" in binarized:  # its folder may hold nothing else
        bmnist(source, binarize="larochelle")
    if binarized != {"larochelle"}:
        mnist(source)


def train(trainings: list[Training], base: Path, options: list[str], n_jobs: int) -> None:
    """Train `n_jobs` of the trainings at a time; interrupted ones resume.

    Each gets the same further `options` of the scripts, and an equal share of the cores, so that
    the CPU is not oversubscribed. A run that another process trains is waited for.

    Raises:
        UserError: a training has failed. The others are stopped; the next call resumes them.
    """
    base.mkdir(parents=True, exist_ok=True)
    n_jobs = min(n_jobs, len(trainings))
    n_threads = max(1, n_cores() // n_jobs)
    found, _ = find_runs(base)
    shares = {training: _share(training.unfinished(found)) for training in trainings}

    def minutes_done():
        return sum(training.kind.minutes * share for training, share in shares.items())

    total = sum(training.kind.minutes for training in trainings)
    waiting, active = list(trainings), []
    # No smoothing: metrics come in jumps, and the rate of the last jump is not that of the rest.
    with progress_bar(total, initial=minutes_done(), smoothing=0) as bar:
        try:
            while waiting or active:
                while waiting and len(active) < n_jobs:
                    training = waiting.pop(0)
                    found, _ = find_runs(base)  # another `train` may work in this folder
                    if not training.is_missing(found):
                        shares[training] = 1.0
                        continue
                    folder, flags = training.start_or_resume(found, base)
                    active.append(_Job(training, folder, [*flags, *options], n_threads))
                time.sleep(POLLING)
                for job in [job for job in active if job.ended()]:
                    active.remove(job)
                    shares[job.training] = 1.0
                    if job.process is None:  # whoever trained it may have been stopped
                        waiting.append(job.training)
                shares |= {job.training: job.share() for job in active}
                words = ", ".join(f"{job.training} {shares[job.training]:.0%}" for job in active)
                bar.set_description(words, refresh=False)
                bar.update(minutes_done() - bar.n)
        finally:
            started = [job.process for job in active if job.process is not None]
            for process in started:
                process.terminate()
            for process in started:
                process.wait()


def _share(run: StoredRun | None) -> float:
    """The share of a training that is done, by its metrics: 0 to 1."""
    if run is None:
        return 0.0
    epochs = run.count
    if run.counter == "batch":
        epochs *= run.settings["batch_size"] / N_IMAGES
    return (1 - EVALUATION) * min(1.0, epochs / run.n_epochs)


class _Job:
    """A training in a process of its own. Its output goes to a file beside the run folder.

    `process` is None if another process trains in that folder already, say one that a killed
    `train` has left behind.
    """

    def __init__(self, training: Training, folder: Path, flags: list[str], n_threads: int):
        self.training, self.folder = training, folder
        self.log = folder.parent / f"{folder.name}.log"
        self.process = None
        if is_locked(folder):
            return
        command = [sys.executable, str(ROOT / training.kind.script), *flags]
        environment = {"OMP_NUM_THREADS": str(n_threads)} | os.environ
        with open(self.log, "a") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                process_group=0,  # Ctrl-C reaches this process only; `train` ends the others
            )

    def share(self) -> float:
        """The share of the training that is done."""
        try:
            return _share(read_run(self.folder))
        except UserError:  # it has only just begun
            return 0.0

    def ended(self) -> bool:
        """Whether it has ended; a failed one raises UserError with its last line of output."""
        if self.process is None:
            return not is_locked(self.folder)
        status = self.process.poll()
        if status:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            last = lines[-1] if lines else "it printed nothing"
            raise UserError(f"training {self.training} failed: {last}")
        return status == 0
