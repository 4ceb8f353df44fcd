"""Sweeps over a script's options, and plots of what they reached."""

import json

import pytest
from matplotlib.image import imread

import figures.__main__ as command_line
from figures import sweeps
from figures.__main__ import main, parse
from figures.runs import find_runs
from figures.trainings import missing_trainings
from harness.errors import UsageError, UserError
from tests.fake_runs import fake_run

COMMAND = ["train", "vae", "--zdim", "2", "5", "--lr", "1e-3", "3e-4", "--seeds", "2"]


def missing(command):
    found, _ = find_runs(command.runs)
    args = (command.kind,), command.seeds, False, command.data.dataset, command.grid
    return missing_trainings(found, *args)


def test_a_grid_has_all_combinations_and_options_of_figures_stay(tmp_path):
    command = parse([*COMMAND, "--jobs", "3", "--runs", str(tmp_path)])
    assert (command.jobs, command.seeds) == (3, 2)
    assert command.grid == tuple(
        (f"--zdim={z}", f"--lr={lr}") for z in (2, 5) for lr in ("1e-3", "3e-4")
    )
    names = {str(training) for training in missing(command)}
    assert len(names) == 8 and "vae-zdim5-lr3e-4-seed1" in names


@pytest.mark.parametrize(
    "words, message",
    [
        (["--zdim", "0", "3"], "--zdim must be at least 1"),
        (["--zdim", "2", "--zdim", "3"], "--zdim is given twice"),
        (["--seed", "1"], "--seeds N"),
        (["--nope", "1"], "--nope"),
    ],
)
def test_a_wrong_option_is_named_before_anything_trains(words, message):
    with pytest.raises(UsageError, match=message):
        parse(["train", "vae", *words])


def test_what_is_finished_stays_and_what_is_interrupted_resumes(tmp_path):
    for zdim in (2, 5):
        fake_run(tmp_path / f"old{zdim}", "vae", "--zdim", str(zdim))
    (tmp_path / "old5" / "result.json").unlink()
    (tmp_path / "old5" / "checkpoint.pt").touch()
    command = parse(["train", "vae", "--zdim", "2", "5", "10", "--runs", str(tmp_path)])
    found, _ = find_runs(tmp_path)
    starts = {}
    for training in missing(command):
        starts[str(training)] = training.start_or_resume(found, tmp_path)[1]
    assert starts.keys() == {"vae-zdim5-seed0", "vae-zdim10-seed0"}
    assert starts["vae-zdim5-seed0"] == ["--resume", str(tmp_path / "old5")]
    assert "--zdim=10" in starts["vae-zdim10-seed0"]


def test_a_longer_run_does_not_stand_for_a_shorter_one_of_a_sweep(tmp_path):
    fake_run(tmp_path / "long", "vae")
    words = ["train", "vae", "--epochs", "10", "100", "--runs", str(tmp_path)]
    assert [str(training) for training in missing(parse(words))] == ["vae-epochs10-seed0"]


def test_a_sweep_goes_to_the_same_trainers(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(command_line, "train", lambda *args: asked.append(args))
    monkeypatch.setattr(command_line.cluster, "submit", lambda *args: asked.append(args))
    words = [*COMMAND, "--runs", str(tmp_path), "--device", "cpu"]
    main(parse([*words, "--jobs", "2"]))
    main(parse([*words, "--slurm", "partition=cpu"]))
    (trained, *_, n_jobs), (submitted, *_, parameters) = asked
    assert trained == submitted and len(trained) == 8
    assert (n_jobs, parameters) == (2, {"partition": "cpu"})


@pytest.fixture
def swept(tmp_path):
    """VAEs of 2, 5 and 20 dimensions, 20 with two seeds of different results."""
    for zdim, seed, nats in ((2, 0, 130.0), (5, 0, 105.0), (20, 0, 91.0), (20, 1, 92.0)):
        flags = ("--zdim", str(zdim), "--seed", str(seed))
        folder = fake_run(tmp_path / "runs" / f"z{zdim}-{seed}", "vae", *flags)
        result = json.loads((folder / "result.json").read_text())
        result["likelihood"]["neg_log_px_nats"] = nats
        (folder / "result.json").write_text(json.dumps(result))
    return tmp_path / "runs"


def test_points_are_values_of_seeds_by_the_swept_setting(swept):
    found, _ = find_runs(swept)
    (points,) = sweeps.lines(found, "zdim", "likelihood.neg_log_px_nats").values()
    assert points == {2: [130.0], 5: [105.0], 20: [91.0, 92.0]}
    (points,) = sweeps.lines(found, "zdim", "val_neg_elbo_nats").values()
    assert points == {2: [100.0], 5: [100.0], 20: [100.0, 100.0]}
    known = "no finished run has the setting zdim and the number no.such; numbers are .*latent.acti"
    with pytest.raises(UserError, match=known):
        sweeps.lines(found, "zdim", "no.such")


def test_the_plot_is_written(swept, capsys):
    keys = ["likelihood.neg_log_px_nats", "latent.active_units"]
    main(parse(["plot", "--runs", str(swept), "--x", "zdim", "--y", *keys]))
    picture = swept / f"{'-'.join(keys)}-by-zdim.png"
    assert capsys.readouterr().out == f"{picture}\n"
    assert imread(picture).ndim == 3 and picture.with_suffix(".pdf").exists()
    main(parse(["plot", "--runs", str(swept), "--x", "zdim", "--y", *keys]))  # again, over it


@pytest.mark.parametrize("name", ["photo.png", "photo.pdf"])
def test_a_plot_replaces_nothing_of_anyone_s(swept, tmp_path, name):
    album = tmp_path / "album"
    album.mkdir()
    (album / name).write_bytes(b"\x89PNG of a holiday")
    with pytest.raises(UserError, match="is no plot of ours"):
        main(parse(["plot", "--runs", str(swept), "--out", str(album / "photo.png")]))
    assert [path.name for path in album.iterdir()] == [name]


def test_a_sweep_is_in_the_table_of_latex_by_its_settings(swept, tmp_path):
    main(parse(["export", str(tmp_path / "t.tex"), "--runs", str(swept)]))
    text = (tmp_path / "t.tex").read_text()
    assert "VAE: zdim 5" in text and "105.000" in text
    assert sweeps.dimensions_table(find_runs(swept)[0])[1][-1][:2] == ["20", "91.50 ± 0.71 (2)"]
