import os
import subprocess
import sys
from argparse import Namespace

import pytest
import torch

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
import figures.__main__ as command_line
from figures import kinds, trainings
from figures.__main__ import WANTED, main, parse_args, train_missing
from figures.kinds import KINDS, SCRIPTS, VAE
from figures.report import FIGURES
from figures.runs import find_runs
from harness.errors import UserError
from tests.conftest import ROOT
from tests.fake_runs import fake_run, fake_runs, unwrapped


def test_a_failed_training_is_named_with_its_last_line(tmp_path, monkeypatch):
    script = """import sys; sys.exit("epoch 1\\repoch 2\\na3_vae_template.py: error: no MNIST")"""
    (tmp_path / VAE).write_text(script)
    monkeypatch.setattr(trainings, "ROOT", tmp_path)
    words = "training vae failed: a3_vae_template.py: error: no MNIST$"
    with pytest.raises(UserError, match=words):
        trainings.train(["vae"], [], tmp_path / "runs", quick=True, device="cpu", n_jobs=1)


@pytest.mark.parametrize(
    ("cuda", "flags", "n_jobs"),
    [
        (False, [], 3),
        (True, [], 5),
        (True, ["--device", "cpu"], 3),
        (True, ["--jobs", "2"], 2),
    ],
)
def test_side_by_side_run_all_on_cuda_and_one_per_core_on_a_cpu(
    tmp_path, monkeypatch, cuda, flags, n_jobs
):
    def select_device(name):
        return torch.device("cuda" if cuda and name == "auto" else "cpu")

    def train(names, found, base, quick, device, n_jobs):
        asked.append((len(names), n_jobs))

    asked = []
    monkeypatch.setattr(command_line, "n_cores", lambda: 3)
    monkeypatch.setattr(command_line, "select_device", select_device)
    monkeypatch.setattr(command_line, "train", train)
    with pytest.raises(UserError, match="no finished run"):
        main(parse_args(["--train", "--runs", str(tmp_path), *flags]))
    assert asked == [(5, n_jobs)]


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


@pytest.mark.parametrize("quick", [True, False])
def test_from_nothing_the_five_kinds_are_trained_n_at_a_time(tmp_path, monkeypatch, quick):
    monkeypatch.setattr(FakeProcess, "commands", [])
    monkeypatch.setattr(FakeProcess, "most", 0)
    monkeypatch.setattr(FakeProcess, "threads", set())
    monkeypatch.setattr(trainings, "n_cores", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    # Only this module's name, not the module that all share.
    fake = Namespace(Popen=FakeProcess, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(trainings, "subprocess", fake)
    monkeypatch.setattr(trainings.time, "sleep", lambda seconds: None)
    base = tmp_path / "runs"
    trainings.train(WANTED, [], base, quick=quick, device="cpu", n_jobs=2)
    assert FakeProcess.most == 2 and len(FakeProcess.commands) == 5
    assert FakeProcess.threads == {"3"}  # each one's share of seven cores
    for name, (python, script, *flags) in zip(WANTED, FakeProcess.commands):
        kind = KINDS[name]
        assert (python, script) == (sys.executable, str(ROOT / kind.script))
        where = {"out": str(base / f"{name}-seed0"), "device": "cpu"}
        args = SCRIPTS[kind.script].parse_args(flags)
        assert vars(args) == vars(kind.args(quick)) | where


@pytest.mark.parametrize("flags", [["--jobs", "2"], ["--device", "cpu", "--check"]])
def test_flags_of_trainings_need_one(flags):
    with pytest.raises(UserError, match="they need --train"):
        parse_args(flags)


def test_an_unfinished_training_goes_on(tmp_path):
    fake_runs(tmp_path, "nf", "vae")
    for name in ("nf", "vae"):
        (tmp_path / name / "result.json").unlink()
    found, _ = find_runs(tmp_path)
    folder, flags = trainings._start_or_resume("nf", found, tmp_path, False)
    assert folder == tmp_path / "nf" and flags == ["--resume", str(folder)]
    # A training of another length is not the missing one.
    folder, flags = trainings._start_or_resume("vae", found, tmp_path, True)
    assert flags == ["--zdim", "20", *kinds.QUICK[VAE].split(), "--out", str(folder)]
    assert not folder.exists()


def test_only_runs_that_are_too_short_are_trained(tmp_path, monkeypatch):
    fake_run(tmp_path / "gan", "gan", "--n_epochs", "1")
    fake_run(tmp_path / "nf", "nf")
    asked = []
    monkeypatch.setattr(command_line, "train", lambda names, *_: asked.append(names))
    for flags in ([], ["--quick"]):
        args = parse_args(["--train", "--device", "cpu", "--runs", str(tmp_path), *flags])
        train_missing(args, WANTED)
    assert asked == [["vae", "manifold", "vae_report", "gan"], ["vae", "manifold", "vae_report"]]


@pytest.fixture
def quick_runs(tmp_path, monkeypatch):
    """A folder of runs by the quick command of every kind but the default VAE, on few images."""

    def with_few_images(load):
        def few(*args):
            splits = load(*args)
            for split in splits:
                split.images = split.images[:130]
            return splits

        return few

    for script, name in ((vae, "bmnist"), (gan, "mnist"), (nf, "mnist")):
        monkeypatch.setattr(script, name, with_few_images(getattr(script, name)))
    monkeypatch.setattr(gan, "N_DIVERSITY", 100)
    base = tmp_path / "runs"
    for name in WANTED[1:]:
        _, script, *flags = KINDS[name].command(quick=True).split()
        flags += ["--device", "cpu", "--out", str(base / name)]
        monkeypatch.setattr(sys, "argv", [script, *flags])
        SCRIPTS[script].main(SCRIPTS[script].parse_args(flags))
    return base


def check_quick_report(base):
    """Every figure is there and says that it shows a quick run."""
    text = unwrapped((base / "figures" / "README.md").read_text())
    assert "a quick run" in text.splitlines()[0]
    drawn = {path.stem for path in (base / "figures" / "report").glob("fig*.png")}
    assert drawn == {figure.name for figure in FIGURES if figure.kind in WANTED}
    captions = [line for line in text.splitlines() if line.startswith("**Figure")]
    assert len(captions) == len(drawn)
    assert all("**quick run: " in caption for caption in captions)


def train_and_draw_quickly(base):
    """Run `python -m figures --train --quick` as a user does."""
    flags = ["--train", "--quick", "--device", "cpu", "--runs", str(base)]
    process = subprocess.run(
        [sys.executable, "-m", "figures", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert process.returncode == 0, process.stderr
    return flags


def written(base):
    return {path: os.stat(path).st_mtime_ns for path in base.rglob("metrics.jsonl")}


def test_the_quick_report_trains_what_is_missing_and_draws_every_figure(quick_runs):
    before = written(quick_runs)
    flags = train_and_draw_quickly(quick_runs)
    check_quick_report(quick_runs)
    after = written(quick_runs)
    assert before.items() < after.items()
    assert after.keys() - before.keys() == {quick_runs / "vae-seed0" / "metrics.jsonl"}
    train_missing(parse_args(flags), WANTED)  # nothing is missing any more
    assert written(quick_runs) == after


@pytest.mark.slow
def test_the_quick_report_from_nothing(tmp_path):
    train_and_draw_quickly(tmp_path / "runs")
    check_quick_report(tmp_path / "runs")
    trained = written(tmp_path / "runs")
    assert len(trained) == 5
    train_and_draw_quickly(tmp_path / "runs")
    assert written(tmp_path / "runs") == trained


def test_quick_trainings_are_of_the_full_model():
    """A quick training has the settings of the full one, except its length."""
    for kind in KINDS.values():
        full, quick = vars(kind.args()), vars(kind.args(quick=True))
        differing = {name for name in full if full[name] != quick[name]}
        lengths = differing - {"importance_samples", "quality_samples"}
        assert lengths in ({"epochs"}, {"n_epochs"}) and kind.n_epochs(quick=True) <= 2
        assert quick["quality_samples"] == 0 and quick.get("importance_samples", 0) < 10
