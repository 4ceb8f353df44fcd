"""The report from quick runs, as a user trains and draws it."""

import os
import signal
import subprocess
import sys

import pytest

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from figures import kinds, trainings
from figures.__main__ import main, parse
from figures.kinds import KINDS, NEEDED, SCRIPTS, VAE
from figures.report import FIGURES
from harness import plots
from tests.conftest import ROOT
from tests.fake_runs import fake_run, unwrapped
from tests.processes import wait_for

IMAGES = 40
# A script that trains on few images, in a process of its own.
SMALL = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
from datasets import Batches
make = Batches.__init__
def few(self, images, *args, **options):
    make(self, images[:{IMAGES}], *args, **options)
Batches.__init__ = few
runpy.run_path({str(ROOT)!r} + "/" + sys.argv[0].rpartition("/")[2], run_name="__main__")
"""


@pytest.fixture
def quick_runs(tmp_path, monkeypatch):
    """A folder of quick runs of every kind but the default VAE.

    A run of each script is trained, on few images; the others' files are of the same form.
    """

    def with_few_images(load):
        def few(*args):
            splits = load(*args)
            for split in splits:
                split.images = split.images[:IMAGES]
            return splits

        return few

    monkeypatch.setattr(plots, "DPI", 100)
    with monkeypatch.context() as patch:
        for script, name in ((vae, "bmnist"), (gan, "mnist"), (nf, "mnist")):
            patch.setattr(script, name, with_few_images(getattr(script, name)))
        patch.setattr(gan, "N_DIVERSITY", 100)
        base = tmp_path / "runs"
        for name in ("manifold", "gan", "nf"):
            script, flags = KINDS[name].script, KINDS[name].options(quick=True)
            flags += ["--device", "cpu", "--out", str(base / name)]
            patch.setattr(sys, "argv", [script, *flags])
            SCRIPTS[script].main(SCRIPTS[script].Config.parse(flags))
    for name in ("vae_report", "gan_report"):
        fake_run(base / name, name, *kinds.QUICK[KINDS[name].script].split())
    return base


def check_quick_report(base):
    """Every figure is there and says that it shows a quick run."""
    text = unwrapped((base / "figures" / "README.md").read_text())
    assert "a quick run" in text.splitlines()[0]
    drawn = {path.stem for path in (base / "figures" / "report").glob("fig*.png")}
    assert drawn == {f"{figure.name}-short" for figure in FIGURES if figure.kind in NEEDED}
    strips = (base / "figures" / "report").glob("strip*.png")
    assert [path.stem for path in strips] == ["strip-short"]
    captions = [line for line in text.splitlines() if line.startswith("**Figure")]
    assert len(captions) == len(drawn)
    assert all("**quick run: " in caption for caption in captions)


def written(base):
    return {path: os.stat(path).st_mtime_ns for path in base.rglob("metrics.jsonl")}


@pytest.mark.thorough
def test_the_quick_report_trains_what_is_missing_and_draws_every_figure(
    tmp_path, quick_runs, monkeypatch
):
    (tmp_path / VAE).write_text(SMALL)
    monkeypatch.setattr(trainings, "ROOT", tmp_path)
    before = written(quick_runs)
    runs = ["--quick", "--runs", str(quick_runs)]
    train = parse(["train", "--device", "cpu", *runs])
    main(train)
    main(parse(["draw", *runs]))
    check_quick_report(quick_runs)
    after = written(quick_runs)
    assert before.items() < after.items()
    assert after.keys() - before.keys() == {quick_runs / "vae-seed0" / "metrics.jsonl"}
    main(train)  # nothing is missing any more
    assert written(quick_runs) == after


def train_and_draw_quickly(base):
    """Run `python -m figures train --quick`, then `draw --quick`, as a user does."""
    for command in (["train", "--device", "cpu"], ["draw"]):
        process = subprocess.run(
            [sys.executable, "-m", "figures", *command, "--quick", "--runs", str(base)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert process.returncode == 0, process.stderr


@pytest.mark.slow
def test_the_quick_report_from_nothing(tmp_path):
    train_and_draw_quickly(tmp_path / "runs")
    check_quick_report(tmp_path / "runs")
    trained = written(tmp_path / "runs")
    assert len(trained) == len(NEEDED)
    train_and_draw_quickly(tmp_path / "runs")
    assert written(tmp_path / "runs") == trained


@pytest.mark.slow
def test_ctrl_c_stops_the_trainings_in_order(tmp_path):
    flags = ["train", "--quick", "--kinds", "manifold", "--device", "cpu", "--runs", tmp_path]
    command = [sys.executable, "-m", "figures", *flags]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    folder = tmp_path / "manifold-seed0"
    wait_for(folder / "metrics.jsonl")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the job
    _, output = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.endswith(f"the runs are in {tmp_path}; the same command resumes them\n")
    assert f"--resume {folder}" in (tmp_path / "manifold-seed0.log").read_text()
    page = (folder / "index.html").read_text()
    assert "Stopped at epoch 1 of 2" in page and f"--resume {folder}" in page
