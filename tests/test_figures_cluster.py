"""Submission to a cluster, with submitit's executor for this machine in SLURM's place."""

import contextlib
import json
import re
import sys

import pytest

import a3_vae_template as vae
from datasets import Batches
from figures import cluster
from figures.__main__ import main, parse
from figures.runs import read_run
from figures.trainings import Training
from harness.errors import UserError
from tests.conftest import ROOT
from tests.fake_runs import fake_run, unwrapped

pytestmark = pytest.mark.thorough

submitit = pytest.importorskip("submitit")


def make_few(make=Batches.__init__):
    """Let every split have only a few images."""

    def few(self, images, *args, **options):
        make(self, images[:130], *args, **options)

    return few


class SmallJob(cluster.Job):
    """A training on few images; the other process imports this module, so it knows the class."""

    def __call__(self):
        Batches.__init__ = make_few()
        super().__call__()


class HereExecutor(submitit.LocalExecutor):
    """Runs jobs on this machine; keeps the parameters that SLURM would get."""

    started, parameters_given = [], {}

    def update_parameters(self, **parameters):
        HereExecutor.parameters_given.update(parameters)

    def submit(self, job):
        HereExecutor.started.append(super().submit(job))
        return HereExecutor.started[-1]


@pytest.fixture
def here(monkeypatch):
    """No SLURM, but an executor that runs jobs here; returns the list of started jobs."""
    monkeypatch.setattr(submitit, "SlurmExecutor", HereExecutor)
    monkeypatch.setattr(HereExecutor, "started", [])
    monkeypatch.setattr(HereExecutor, "parameters_given", {})
    monkeypatch.setattr(cluster, "Job", SmallJob)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(ROOT)
    started = HereExecutor.started
    monkeypatch.setattr(cluster, "_queue", lambda: {j.job_id for j in started if not j.done()})
    yield started
    for job in started:
        job.cancel()


def call(base, *flags):
    fixed = ["train", "--quick", "--device", "cpu", "--kinds", "manifold", "--runs", str(base)]
    main(parse([*fixed, "--seeds", "2", "--slurm", *flags]))


def test_trainings_are_submitted_once_and_collected(tmp_path, here, capsys):
    base = tmp_path / "runs"
    fake_run(base / "done", "manifold", "--seed", "1", "--epochs", "2")
    call(base, "partition=gpu", "time=7", "exclusive=true")
    assert "0 trainings were queued or running, 1 are submitted as job" in capsys.readouterr().out
    given = HereExecutor.parameters_given
    assert (given["partition"], given["time"], given["exclusive"]) == ("gpu", 7, True)
    assert given["additional_parameters"] == {"requeue": True}
    call(base)
    assert "1 trainings were queued or running, 0 are submitted" in capsys.readouterr().out
    (job,) = here
    job.results()  # waits
    run = read_run(base / "manifold-seed0")
    assert run.finished and run.seed == 0 and run.count == 2
    call(base)  # nothing is missing any more
    with pytest.raises(UserError, match="not all figures could be drawn"):
        main(parse(["draw", "--quick", "--runs", str(base)]))
    page = unwrapped((base / "figures" / "README.md").read_text())
    row = re.search(r"2 latent dimensions \| test negative ELBO \(nats\) \| end \| (.*?) \|", page)
    assert len(here) == 1 and row[1].endswith(" (2)")


@pytest.mark.parametrize(
    ("word", "lines"),
    [
        ("exclusive=false", []),
        ("exclusive=true", ["#SBATCH --exclusive"]),
        ("exclusive=user", ["#SBATCH --exclusive=user"]),
    ],
)
def test_an_exclusive_node_is_asked_for_or_not(tmp_path, monkeypatch, word, lines):
    """In submitit's own batch file."""
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    parameters = dict(map(cluster.parameter, [word, "use_srun=False"]))
    executor = cluster._executor(tmp_path, [Training("vae", 0)], parameters)
    text = executor._make_submission_file_text("python", "0")
    assert [line for line in text.splitlines() if line.startswith("#SBATCH --excl")] == lines
    assert "srun " not in text


def test_a_job_that_ended_unfinished_is_named_and_submitted_again(tmp_path, monkeypatch, capsys):
    class Executor:
        def __init__(self, folder, max_num_timeout):
            folder.mkdir(parents=True, exist_ok=True)

        def update_parameters(self, **_):
            pass

        def batch(self):
            return contextlib.nullcontext()

        def submit(self, job):
            submitted.append(str(job.training))
            return type("Submitted", (), {"job_id": f"8_{len(submitted) - 1}"})

    submitted = []
    monkeypatch.setattr(submitit, "SlurmExecutor", Executor)
    monkeypatch.setattr(cluster, "_queue", lambda: {"7_1"})
    (tmp_path / "slurm").mkdir()
    jobs = {"nf-seed0": "7_0", "nf-seed1": "7_1"}
    (tmp_path / "slurm" / "jobs.json").write_text(json.dumps(jobs))
    cluster.submit([Training("nf", seed) for seed in range(3)], tmp_path, [], {})
    captured = capsys.readouterr()
    assert submitted == ["nf-seed0", "nf-seed2"]
    assert "nf-seed0: job 7_0 ended before its training; see " in captured.err
    assert "7_0_0_log.err" in captured.err and "nf-seed1" not in captured.err
    assert "1 trainings were queued or running, 2 are submitted as job 8" in captured.out
    kept = json.loads((tmp_path / "slurm" / "jobs.json").read_text())
    assert kept == {"nf-seed0": "8_0", "nf-seed1": "7_1", "nf-seed2": "8_1"}
    cluster.submit([Training("nf", 1, quick=True)], tmp_path, [], {})
    assert submitted[2:] == ["nf-seed1"]  # the one in the queue is of full length


def lines_without_seconds(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_a_requeued_job_goes_on_and_ends_like_one_that_was_never_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(Batches, "__init__", make_few())
    monkeypatch.setattr(sys, "argv", sys.argv)
    whole = cluster.Job(
        Training("manifold", 3, quick=True), tmp_path / "whole", ["--device", "cpu"]
    )
    whole()
    job = cluster.Job(Training("manifold", 3, quick=True), tmp_path / "cut", ["--device", "cpu"])
    epoch_iter, epochs = vae.epoch_iter, []

    def stopped(model, *args):
        if len(epochs) == 2:  # training and validation
            raise SystemExit(-1)  # as submitit does when the time is up
        epochs.append(1)
        return epoch_iter(model, *args)

    with monkeypatch.context() as patch:
        patch.setattr(vae, "epoch_iter", stopped)
        with pytest.raises(SystemExit):
            job()
    folder = tmp_path / "cut" / "manifold-seed3"
    assert len(lines_without_seconds(folder)) == 1 and not (folder / "result.json").exists()
    again = job.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission)
    again.function()
    lines = lines_without_seconds(folder)
    assert len(lines) == 2
    assert lines == lines_without_seconds(tmp_path / "whole" / "manifold-seed3")
    again.function()  # nothing is left to do
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["manifold-seed3"]


def test_a_machine_without_submitit_or_slurm_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="this machine has no SLURM"):
        call(tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(
        UserError, match=r"needs the package submitit \(ModuleNotFoundError\): pip install submitit"
    ):
        call(tmp_path)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("gpu", "must be KEY=VALUE, such as partition=gpu, not 'gpu'"),
        ("=gpu", "must be KEY=VALUE"),
        ("setup=ls", "setup cannot be set on a command line"),
        ("time=1:00:00", "time is a whole number of minutes, not '1:00:00'"),
        ("partitio=gpu", r"Unavailable parameter\(s\): \['partitio'\]"),
    ],
)
def test_a_bad_parameter_is_one_line(tmp_path, monkeypatch, word, message):
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    with pytest.raises(UserError, match=message) as error:
        call(tmp_path, word)
    assert "\n" not in str(error.value)
