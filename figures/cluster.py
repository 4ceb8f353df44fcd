"""Submits trainings to a SLURM cluster with submitit, as an array of jobs that can be requeued."""

import json
import math
import subprocess
import sys
from pathlib import Path

from figures.kinds import SCRIPTS
from figures.runs import find_runs
from figures.trainings import ROOT, Training
from harness.errors import UserError
from harness.files import write_json

MAX_TIMEOUTS = 100  # a job may run into its time limit so often; each time it is requeued
MARGIN = 4  # the default time limit is so many times what a training takes on two cores
# submitit's parameters that are no words of a command line.
NO_WORDS = {"setup", "teardown", "srun_args", "additional_parameters"}
# The step of a job doesn't inherit the number of cores, and PyTorch would take all of a node's.
SETUP = [
    "export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}",
    "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}",
]


def parameter(text: str) -> tuple[str, int | str | bool]:
    """(key, value) of a parameter of submitit's SlurmExecutor, such as "partition=gpu".

    Raises:
        ValueError: it is none, or cannot be set on a command line.
    """
    key, equals, value = text.partition("=")
    if key in NO_WORDS:
        raise ValueError(f"--slurm: {key} cannot be set on a command line")
    if not key or not equals:
        raise ValueError(f"--slurm: must be KEY=VALUE, such as partition=gpu, not {text!r}")
    if key == "time" and not value.isdigit():
        raise ValueError(f"--slurm: time is a whole number of minutes, not {value!r}")
    words = {"true": True, "false": False}
    return key, int(value) if value.isdigit() else words.get(value.lower(), value)


class Job:
    """A training on a node. Called again after a requeue, it resumes from its checkpoint."""

    def __init__(self, training: Training, base: Path, options: list[str]):
        self.training, self.base, self.options = training, base, options

    def __call__(self) -> None:
        """Train, or resume."""
        found, _ = find_runs(self.base)
        if not self.training.is_missing(found):
            return
        _, flags = self.training.start_or_resume(found, self.base)
        script = self.training.kind.script
        # In this process: submitit's signal that the time is up must not kill a child first.
        sys.argv = [str(ROOT / script), *flags, *self.options]
        SCRIPTS[script].main(SCRIPTS[script].Config.parse())

    def checkpoint(self):
        """What submitit calls after a requeue; the state itself is in the run folder."""
        return _submitit().helpers.DelayedSubmission(self)


def submit(trainings: list[Training], base: Path, options: list[str], parameters: dict) -> None:
    """Submit the trainings that are not in the queue yet, and print how many are where.

    The numbers of the jobs are kept in base/slurm/jobs.json, beside their logs.

    Raises:
        UserError: there is no submitit or no SLURM, or it refuses a parameter.
    """
    folder = base / "slurm"
    executor = _executor(folder, trainings, parameters)
    jobs = _read_jobs(folder / "jobs.json")
    queue = _queue()
    waiting = [training for training in trainings if jobs.get(_key(training)) not in queue]
    for training in waiting:
        if job_id := jobs.get(_key(training)):
            log = folder / f"{job_id}_0_log.err"
            print(f"{training}: job {job_id} ended before its training; see {log}", file=sys.stderr)
    submitted = []
    if waiting:
        try:
            with executor.batch():
                submitted = [executor.submit(Job(each, base, options)) for each in waiting]
        except RuntimeError as error:  # with what sbatch says
            raise UserError(f"--slurm: {_one_line(error)}") from error
        jobs |= {_key(each): job.job_id for each, job in zip(waiting, submitted)}
        write_json(folder / "jobs.json", jobs)
    ids = f" as job {submitted[0].job_id.partition('_')[0]}" if submitted else ""
    n_queued = len(trainings) - len(waiting)
    print(f"{n_queued} trainings were queued or running, {len(waiting)} are submitted{ids}")


def _key(training: Training) -> str:
    """Its name in jobs.json."""
    return f"{training}{', quick' * training.quick}"


def _submitit():
    try:
        import submitit
    except Exception as error:  # a broken installation can raise anything
        raise UserError(
            f"--slurm needs the package submitit ({type(error).__name__}): pip install submitit"
        ) from error
    return submitit


def _executor(folder: Path, trainings: list[Training], parameters: dict):
    minutes = max(training.kind.minutes for training in trainings)
    defaults = {"job_name": "figures", "cpus_per_task": 2, "time": math.ceil(MARGIN * minutes)}
    fixed = {"setup": SETUP, "additional_parameters": {"requeue": True}}
    # None leaves it out; False would become "--exclusive=False", which sbatch refuses.
    fixed["exclusive"] = parameters.get("exclusive") or None
    try:
        executor = _submitit().SlurmExecutor(folder, max_num_timeout=MAX_TIMEOUTS)
        executor.update_parameters(**defaults | parameters | fixed)
    except RuntimeError as error:
        raise UserError("--slurm: this machine has no SLURM: there is no srun") from error
    except ValueError as error:
        raise UserError(f"--slurm: {_one_line(error)}") from error
    return executor


def _read_jobs(path: Path) -> dict[str, str]:
    """The number of each training's last job."""
    try:
        jobs = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        jobs = None
    if not isinstance(jobs, dict):
        raise UserError(f"{path} is damaged: see squeue, and delete the file if no job is there")
    return jobs


def _queue() -> set[str]:
    """The numbers of this user's jobs that wait or run."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except OSError as error:
        raise UserError(f"--slurm: squeue: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise UserError(f"--slurm: {_one_line(error.stderr)}") from error
    return set(done.stdout.split())


def _one_line(words) -> str:
    lines = [line.strip() for line in str(words).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["SLURM refused"])[0]
