"""Trains the runs that are missing, each in a process of its own, under one progress bar."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

from datasets import N_TRAIN, N_VALIDATION
from figures.kinds import KINDS
from figures.runs import Runs, is_of_kind, read_run
from harness.devices import n_cores
from harness.errors import UserError
from harness.progress import progress_bar
from harness.run import candidates

ROOT = Path(__file__).parent.parent
N_IMAGES = N_TRAIN + N_VALIDATION  # in an epoch of the GAN


def train(names: list[str], found: Runs, base: Path, quick: bool, device: str, n_jobs: int) -> None:
    """Train one run of each kind in `names`, `n_jobs` at a time; unfinished ones are resumed.

    Trainings side by side share the cores: threads of two trainings that wait for each other on
    the same core are many times slower.

    Raises:
        UserError: a training has failed. The others are stopped; the next call resumes them.
    """
    base.mkdir(parents=True, exist_ok=True)
    on_device = [] if device == "auto" else ["--device", device]
    n_threads = max(1, n_cores() // n_jobs)
    waiting, active, done = list(names), [], 0.0
    with progress_bar(sum(KINDS[name].minutes for name in names)) as bar:
        try:
            while waiting or active:
                while waiting and len(active) < n_jobs:
                    name = waiting.pop(0)
                    folder, flags = _start_or_resume(name, found, base, quick)
                    active.append(_Job(name, folder, [*flags, *on_device], n_threads))
                time.sleep(0.2)
                for job in [job for job in active if job.finished()]:
                    active.remove(job)
                    done += job.minutes
                shares = [(job, job.share()) for job in active]
                words = ", ".join(f"{job.name} {share:.0%}" for job, share in shares)
                bar.set_description(words, refresh=False)
                bar.update(done + sum(job.minutes * share for job, share in shares) - bar.n)
        finally:
            for job in active:
                job.process.terminate()
            for job in active:
                job.process.wait()


def _start_or_resume(name: str, found: Runs, base: Path, quick: bool) -> tuple[Path, list[str]]:
    """The run folder and the script's options."""
    kind = KINDS[name]
    for run in reversed(found):
        if not run.finished and is_of_kind(run, kind) and run.n_epochs == kind.n_epochs(quick):
            return run.folder, ["--resume", str(run.folder)]
    folder = next(path for path in candidates(base / f"{name}-seed0") if not path.exists())
    return folder, [*kind.command(quick).split()[2:], "--out", str(folder)]


class _Job:
    """A training in a process of its own. Its output goes to a file beside the run folder."""

    def __init__(self, name: str, folder: Path, flags: list[str], n_threads: int):
        self.name, self.folder = name, folder
        self.minutes = KINDS[name].minutes
        self.log = folder.with_suffix(".log")
        command = [sys.executable, str(ROOT / KINDS[name].script), *flags]
        environment = {"OMP_NUM_THREADS": str(n_threads)} | os.environ
        with open(self.log, "w") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment
            )

    def share(self) -> float:
        """The share of the training that is done, by its metrics: 0 to 1."""
        with contextlib.suppress(UserError):
            run = read_run(self.folder)
            epochs = run.count
            if run.counter == "batch":
                epochs *= run.args.batch_size / N_IMAGES
            return min(1.0, epochs / run.n_epochs)
        return 0.0

    def finished(self) -> bool:
        """Whether it has ended; a failed one raises UserError with its last line of output."""
        status = self.process.poll()
        if status:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            last = lines[-1] if lines else "it printed nothing"
            raise UserError(f"training {self.name} failed: {last}")
        return status == 0
