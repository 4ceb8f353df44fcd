import fcntl
import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import figures.__main__ as command_line
from datasets import Source
from figures import cluster, kinds, trainings
from figures.__main__ import main, parse
from figures.kinds import KINDS, NEEDED, SCRIPTS, VAE
from figures.runs import find_runs
from figures.trainings import Training, missing_trainings
from harness.errors import UsageError, UserError
from tests.conftest import ROOT
from tests.fake_runs import fake_run


def of_seed_0(*names, quick=True):
    return [Training(name, 0, quick) for name in names]


def test_a_failed_training_is_named_with_its_last_line(tmp_path, monkeypatch):
    script = """import sys; sys.exit("epoch 1\\repoch 2\\na3_vae_template.py: error: no MNIST")"""
    (tmp_path / VAE).write_text(script)
    monkeypatch.setattr(trainings, "ROOT", tmp_path)
    words = "training vae-seed0 failed: a3_vae_template.py: error: no MNIST$"
    with pytest.raises(UserError, match=words):
        trainings.train(of_seed_0("vae"), tmp_path / "runs", [], n_jobs=1)


@pytest.mark.parametrize(
    ("cuda", "flags", "n_jobs"),
    [
        (False, [], 3),
        (True, [], 6),
        (True, ["--device", "cpu"], 3),
        (True, ["--jobs", "2"], 2),
        (True, ["--kinds", "vae", "nf", "--seeds", "5"], 10),
    ],
)
def test_side_by_side_run_all_on_cuda_and_one_per_core_on_a_cpu(
    tmp_path, monkeypatch, cuda, flags, n_jobs
):
    def select_device(name):
        return torch.device("cuda" if cuda and name == "auto" else "cpu")

    asked = []
    monkeypatch.setattr(command_line, "n_cores", lambda: 3)
    monkeypatch.setattr(command_line, "select_device", select_device)
    monkeypatch.setattr(command_line, "train", lambda *args: asked.append(args[-1]))
    main(parse(["train", "--runs", str(tmp_path), *flags]))
    assert asked == [n_jobs]


def test_a_stopped_call_says_how_it_goes_on(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("figures.__main__.train", interrupted)
    with pytest.raises(KeyboardInterrupt) as raised:
        main(parse(["train", "--runs", str(tmp_path), "--device", "cpu"]))
    assert raised.value.__notes__ == [f"the runs are in {tmp_path}; the same command resumes them"]


def test_what_is_missing_is_downloaded_once_before_any_training(tmp_path, monkeypatch):
    """Trainings side by side must not write the same files."""
    done = []
    monkeypatch.setattr(trainings, "mnist", done.append)
    for module, name in ((command_line, "train"), (cluster, "submit")):
        monkeypatch.setattr(module, name, lambda *args: done.append(args[2]))
    data = ["--dataset", "fashion", "--data_dir", "here", "--download"]
    flags = ["train", "--runs", str(tmp_path), *data]
    main(parse(flags))
    main(parse([*flags, "--slurm"]))
    options = ["--device", "auto", "--data_dir", "here"]
    assert done == 2 * [Source("fashion", Path("here"), download=True), options]


class FakeProcess:
    """Ends the second time it is asked; counts those that run at the same time."""

    commands, threads, running, most = [], set(), 0, 0

    def __init__(self, command, env, **_):
        FakeProcess.commands.append(command)
        FakeProcess.threads.add(env["OMP_NUM_THREADS"])
        FakeProcess.running += 1
        FakeProcess.most = max(FakeProcess.most, FakeProcess.running)
        self.asked = 0

    def poll(self):
        self.asked += 1
        if self.asked == 1:
            return None
        FakeProcess.running -= 1
        return 0


@pytest.fixture
def no_processes(monkeypatch):
    """Trainings start a FakeProcess each, and nobody waits for them."""
    for name, value in (("commands", []), ("threads", set()), ("running", 0), ("most", 0)):
        monkeypatch.setattr(FakeProcess, name, value)
    # Only this module's name, not the module that all share.
    fake = Namespace(Popen=FakeProcess, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(trainings, "subprocess", fake)
    monkeypatch.setattr(trainings.time, "sleep", lambda seconds: None)


@pytest.mark.parametrize("quick", [True, False])
def test_from_nothing_all_kinds_are_trained_n_at_a_time(tmp_path, monkeypatch, no_processes, quick):
    monkeypatch.setattr(trainings, "n_cores", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    base = tmp_path / "runs"
    trainings.train(of_seed_0(*NEEDED, quick=quick), base, ["--device", "cpu"], n_jobs=2)
    assert FakeProcess.most == 2 and len(FakeProcess.commands) == len(NEEDED)
    assert FakeProcess.threads == {"3"}  # each one's share of seven cores
    FakeProcess.threads.clear()
    trainings.train([Training("vae", 1)], base, [], n_jobs=2)
    assert FakeProcess.threads == {"7"}  # it is alone
    for name, (python, script, *flags) in zip(NEEDED, FakeProcess.commands):
        kind = KINDS[name]
        assert (python, script) == (sys.executable, str(ROOT / kind.script))
        where = {"out": str(base / f"{name}-seed0"), "device": "cpu"}
        settings = SCRIPTS[kind.script].Config.parse(flags).flat()
        assert settings == kind.settings(quick) | where


def test_the_bar_counts_minutes_and_starts_with_those_of_stopped_runs(
    tmp_path, monkeypatch, no_processes
):
    """So the time left is that of the rest, at the rate of this call."""
    half = fake_run(tmp_path / "nf-seed1", "nf", "--seed", "1")
    (half / "result.json").unlink()
    (half / "checkpoint.pt").touch()
    lines = (half / "metrics.jsonl").read_text().splitlines(keepends=True)
    (half / "metrics.jsonl").write_text("".join(lines[:50]))
    bars, real = [], trainings.progress_bar

    def progress_bar(total, initial, **options):
        bars.append((total, initial, real(total, initial, **options)))
        return bars[-1][-1]

    monkeypatch.setattr(trainings, "progress_bar", progress_bar)
    trainings.train([Training("nf", 1), Training("vae", 0)], tmp_path, [], n_jobs=1)
    ((total, initial, bar),) = bars
    flow, encoder = KINDS["nf"].minutes, KINDS["vae"].minutes
    assert total == flow + encoder and bar.n == pytest.approx(total)
    assert initial == pytest.approx(flow / 2, rel=0.06)  # its evaluation is still to come
    assert [command[2:4] for command in FakeProcess.commands] == [
        ["--resume", str(half)],
        ["--zdim", "20"],
    ]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "Expected one of {draw, train, plot, check, export}"),
        (["draw", "--jobs", "2"], "Unrecognized or misplaced options: --jobs"),
        (["check", "--device", "cpu"], "Unrecognized or misplaced options: --device"),
        (["export", "runs.csv", "--out", "here"], "Unrecognized or misplaced options: --out"),
        (["train", "--seeds", "0"], "at least 1"),
        (["train", "--jobs", "0"], "at least 1"),
        (["train", "--jobs", "2", "--slurm"], "with --slurm use array_parallelism"),
        (["train", "--kinds", "vea"], "invalid choice 'vea'"),
        (["train", "--kinds"], "--kinds needs some of vae"),
    ],
)
def test_a_command_takes_only_the_options_that_it_reads(flags, words):
    with pytest.raises(UsageError, match=words):
        parse(flags)


def test_a_kind_that_is_named_twice_is_trained_once():
    assert parse(["train", "--kinds", "vae", "nf", "vae"]).kinds == ("vae", "nf")


@pytest.mark.parametrize("command", ["draw", "train", "check", "export"])
def test_the_help_of_a_command_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse([command, "--help"])
    assert stopped.value.code == 0
    example = re.search(r"Example: python -m figures (.*)", capsys.readouterr().out)[1]
    assert parse(example.split()) is not None


def unfinish(run, checkpoint=True):
    (run / "result.json").unlink()
    if checkpoint:
        (run / "checkpoint.pt").touch()
    return run


def test_a_stopped_training_goes_on(tmp_path):
    stopped = unfinish(fake_run(tmp_path / "anywhere", "nf"))
    unfinish(fake_run(tmp_path / "vae", "vae"))
    found, _ = find_runs(tmp_path)
    folder, flags = Training("nf", 0).start_or_resume(found, tmp_path)
    assert folder == stopped and flags == ["--resume", str(folder)]
    # A training of another length or seed is not the missing one.
    for other in (Training("vae", 0, quick=True), Training("vae", 1)):
        folder, flags = other.start_or_resume(found, tmp_path)
        quick = kinds.QUICK[VAE].split() if other.quick else []
        where = ["--dataset", "mnist", "--seed", str(other.seed)]
        where += ["--out", str(tmp_path / str(other))]
        assert flags == ["--zdim", "20", *quick, *where] and not folder.exists()


def test_another_data_set_has_trainings_of_its_own(tmp_path):
    fake_run(tmp_path / "mnist", "nf")
    fake_run(tmp_path / "fashion", "vae", "--dataset", "fashion")
    found, _ = find_runs(tmp_path)
    (missing,) = missing_trainings(found, ["vae", "nf"], 1, False, "fashion")
    folder, flags = missing.start_or_resume(found, tmp_path)
    assert folder.name == "nf-fashion-seed0"
    assert SCRIPTS[missing.kind.script].Config.parse(flags).data.dataset == "fashion"
    (missing,) = missing_trainings(found, ["vae", "nf"], 1, False, "mnist")
    assert str(missing) == "vae-seed0"


def test_a_training_that_stopped_before_its_first_line_goes_on(tmp_path):
    stopped = unfinish(fake_run(tmp_path / "nf-seed0", "nf"))
    (stopped / "metrics.jsonl").unlink()
    found, messages = find_runs(tmp_path)
    assert messages == []
    folder, flags = Training("nf", 0).start_or_resume(found, tmp_path)
    assert folder == stopped and flags == ["--resume", str(stopped)]
    (stopped / "checkpoint.pt").unlink()  # so there is nothing to go on from
    folder, flags = Training("nf", 0).start_or_resume(found, tmp_path)
    assert folder == tmp_path / "nf-seed0-2" and "--resume" not in flags


def test_a_run_that_another_process_trains_is_waited_for(tmp_path, monkeypatch, no_processes):
    """A `train` that was killed may have left it behind."""
    busy = unfinish(fake_run(tmp_path / "vae-seed0", "vae"))
    lock = os.open(busy, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    naps = []

    def sleep(seconds):
        assert FakeProcess.commands == []
        naps.append(seconds)
        if len(naps) == 3:  # it ends
            (busy / "result.json").write_text(json.dumps({"graded": []}))
            os.close(lock)

    monkeypatch.setattr(trainings.time, "sleep", sleep)
    trainings.train([Training("vae", 0)], tmp_path, [], n_jobs=1)
    assert len(naps) >= 3 and FakeProcess.commands == []


def test_a_run_that_another_process_left_unfinished_is_taken_over(
    tmp_path, monkeypatch, no_processes
):
    busy = unfinish(fake_run(tmp_path / "vae-seed0", "vae"))
    lock = os.open(busy, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    naps = []

    def sleep(seconds):
        naps.append(seconds)
        if len(naps) == 1:  # it is killed
            os.close(lock)

    monkeypatch.setattr(trainings.time, "sleep", sleep)
    trainings.train([Training("vae", 0)], tmp_path, [], n_jobs=1)
    ((_, _, *flags),) = FakeProcess.commands
    assert flags == ["--resume", str(busy)]


def test_what_another_call_has_finished_meanwhile_is_not_trained_again(
    tmp_path, monkeypatch, no_processes
):
    def sleep(seconds):
        if not (tmp_path / "gan-seed0").exists():
            fake_run(tmp_path / "gan-seed0", "gan")

    monkeypatch.setattr(trainings.time, "sleep", sleep)
    trainings.train([Training("nf", 0), Training("gan", 0)], tmp_path, [], n_jobs=1)
    (command,) = FakeProcess.commands
    assert command[1].endswith(KINDS["nf"].script)


def test_a_short_training_has_time_for_its_evaluation():
    whole, short = KINDS["vae"].minutes, Training("vae", 0, options=("--epochs=1",))
    assert trainings.EVALUATION * whole < short.kind.minutes < 0.1 * whole
    assert Training("vae", 0, options=("--zdim=5",)).kind.minutes == pytest.approx(whole)


def test_what_is_missing_are_seeds_that_no_run_has_in_full_length(tmp_path):
    fake_run(tmp_path / "gan", "gan", "--n_epochs", "1")
    fake_run(tmp_path / "elsewhere" / "nf", "nf")
    fake_run(tmp_path / "vae-seed1", "vae", "--seed", "1")
    unfinish(fake_run(tmp_path / "vae-seed2", "vae", "--seed", "2"))
    fake_run(tmp_path / "vae-lr", "vae", "--seed", "0", "--lr", "0.1")
    found, _ = find_runs(tmp_path)

    def missing(n_seeds, quick):
        return [
            str(each)
            for each in missing_trainings(found, ["vae", "gan", "nf"], n_seeds, quick, "mnist")
        ]

    assert missing(1, quick=False) == ["gan-seed0", "vae-seed0"]  # the longest first
    assert missing(1, quick=True) == ["vae-seed0"]
    assert missing(3, quick=False) == [
        *("nf-seed1", "nf-seed2"),
        *("gan-seed0", "gan-seed1", "gan-seed2"),
        *("vae-seed0", "vae-seed2"),
    ]


def test_quick_trainings_are_of_the_full_model():
    """A quick training has the settings of the full one, except its length."""
    for kind in KINDS.values():
        full, quick = kind.settings(), kind.settings(quick=True)
        differing = {name for name in full if full[name] != quick[name]}
        lengths = differing - {"importance_samples", "quality_samples"}
        assert lengths in ({"epochs"}, {"n_epochs"}) and kind.n_epochs(quick=True) <= 2
        assert quick["quality_samples"] == 0 and quick.get("importance_samples", 0) < 10
