"""Sweeps over a script's options, and plots of what they reached."""

import json

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

import figures.__main__ as command_line
from datasets import DataError
from figures import sweeps, trainings
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
        (["--zdim", "2,3"], "--zdim 2,3: separate values with spaces"),
        (["--seed", "1"], "use --seeds N"),
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
    lines, left_out = sweeps.lines(found, "zdim", "likelihood.neg_log_px_nats")
    assert list(lines.values()) == [{2: [130.0], 5: [105.0], 20: [91.0, 92.0]}] and not left_out
    lines, _ = sweeps.lines(found, "zdim", "val_neg_elbo_nats")
    assert list(lines.values()) == [{2: [100.0], 5: [100.0], 20: [100.0, 100.0]}]
    known = "no finished run has the setting zdim and the number no.such; numbers are .*latent.acti"
    with pytest.raises(UserError, match=known):
        sweeps.lines(found, "zdim", "no.such")


def test_the_plot_is_written(swept, capsys):
    keys = ["likelihood.neg_log_px_nats", "latent.active_units"]
    fake_run(swept / "gan", "gan")
    main(parse(["plot", "--runs", str(swept), "--x", "zdim", "--y", *keys]))
    picture = swept / f"{'-'.join(keys)}-by-zdim.png"
    out, err = capsys.readouterr()
    assert out == f"{picture}\n" and err == f"left out, without a setting zdim: {swept / 'gan'}\n"
    assert imread(picture).ndim == 3 and picture.with_suffix(".pdf").exists()
    main(parse(["plot", "--runs", str(swept), "--x", "zdim", "--y", *keys]))  # again, over it


@pytest.mark.parametrize(
    "x, y, words",
    [
        ("zdims", "val_bpd", "has the setting zdims; settings are batch_size,"),
        ("zdim", "val_bpd", "the setting zdim and the number val_bpd; numbers are epoch,"),
    ],
)
def test_a_misspelt_name_gets_a_list_of_its_kind(swept, x, y, words):
    with pytest.raises(UserError, match=words):
        sweeps.lines(find_runs(swept)[0], x, y)


def test_runs_that_a_plot_leaves_out_are_named_with_the_reason(swept):
    fake_run(swept / "alone", "vae", "--lr", "0.1")
    fake_run(swept / "old", "vae", "--zdim", "2", started="2025")
    fake_run(swept / "gan", "gan")
    for name, key in (("stopped", None), ("short", "latent")):
        result = fake_run(swept / name, "vae", "--zdim", "9") / "result.json"
        content = json.loads(result.read_text())
        result.unlink()
        if key is not None:
            result.write_text(json.dumps({k: v for k, v in content.items() if k != key}))
    keys = ["likelihood.neg_log_px_nats", "latent.active_units"]
    _, messages = sweeps.panels_of(find_runs(swept)[0], "zdim", keys)
    reasons = {
        "no other run differs in zdim alone": "alone",
        "a newer run differs in nothing": "old",
        "without a setting zdim": "gan",
        "unfinished": "stopped",
        "without a number latent.active_units": "short",
    }
    expected = [f"left out, {reason}: {swept / name}" for reason, name in reasons.items()]
    assert sorted(messages) == sorted(expected)


def test_of_two_panels_each_names_what_it_leaves_out(swept):
    """A run that is alone in one panel for want of its neighbour's number, and one in the other."""
    for lr, part in (("0.1", "latent"), ("0.2", "likelihood")):
        for zdim in ("2", "5"):
            folder = fake_run(swept / f"{lr}-{zdim}", "vae", "--lr", lr, "--zdim", zdim)
            result = json.loads((folder / "result.json").read_text())
            if zdim == "5":
                del result[part]
            (folder / "result.json").write_text(json.dumps(result))
    keys = ["likelihood.neg_log_px_nats", "latent.active_units"]
    _, messages = sweeps.panels_of(find_runs(swept)[0], "zdim", keys)
    alone = "left out, no other run differs in zdim alone: "
    assert f"{alone}{swept / '0.2-2'}, {swept / '0.1-2'}" in messages


def test_own_images_have_their_short_name_in_a_plot(swept):
    def labels(*names):
        for zdim in ("2", "5"):
            for n, name in enumerate(names):
                words = "--zdim", zdim, "--dataset", str(swept / name)
                fake_run(swept / f"own-{len(names)}-{n}-{zdim}", "vae", *words)
        return sweeps.lines(find_runs(swept)[0], "zdim", "val_neg_elbo_nats")[0].keys()

    assert labels("pictures.npy") == {"MNIST", "pictures"}
    paths = [str(swept / name) for name in ("pictures.npy", "b/pictures.npy")]
    assert labels(*paths) == {"dataset mnist", *(f"dataset {path}" for path in paths)}


@pytest.mark.parametrize("kind", ["vae", "gan", "nf"])
def test_help_of_a_sweep_names_that_of_the_script(kind, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(["train", kind, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert not stopped.value.code and f"python a3_{kind}_template.py --help" in text
    assert "may have several values, with spaces between them" in text


@pytest.mark.parametrize("jobs", [["--jobs", "2"], ["--slurm"]])
@pytest.mark.parametrize("damage", ["missing", "corrupt", "empty"])
def test_bad_images_are_found_once_before_any_job(tmp_path, monkeypatch, damage, jobs):
    for module, name in ((command_line, "train"), (command_line.cluster, "submit")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("a job has started"))
    path = tmp_path / "pictures"
    if damage != "missing":
        path.mkdir()
    if damage == "corrupt":
        (path / "1.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match="pictures") as error:
        main(parse([*COMMAND, "--runs", str(tmp_path / "runs"), "--dataset", str(path), *jobs]))
    assert "\n" not in str(error.value)


def test_a_sweep_on_larochelle_s_bits_needs_no_grey_images(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(command_line, "train", lambda *args: started.append(args))
    monkeypatch.setattr(trainings, "bmnist", lambda source, binarize: started.append(binarize))
    data = ["--binarize", "larochelle", "--data_dir", str(tmp_path)]
    main(parse(["train", "vae", *data, "--runs", str(tmp_path / "runs"), "--device", "cpu"]))
    assert started[0] == "larochelle" and len(started) == 2


@pytest.mark.parametrize("name", ["photo.png", "photo.pdf"])
def test_a_plot_replaces_nothing_of_anyone_s(swept, tmp_path, name):
    album = tmp_path / "album"
    album.mkdir()
    (album / name).write_bytes(b"\x89PNG of a holiday")
    with pytest.raises(UserError, match="is no plot of ours"):
        main(parse(["plot", "--runs", str(swept), "--out", str(album / "photo.png")]))
    assert [path.name for path in album.iterdir()] == [name]


def test_a_plot_replaces_its_own_and_no_other_of_matplotlib(swept, tmp_path):
    mine, ours = tmp_path / "mine.png", tmp_path / "ours.png"
    Figure().savefig(mine)
    before = mine.read_bytes()
    with pytest.raises(UserError, match="is no plot of ours"):
        main(parse(["plot", "--runs", str(swept), "--out", str(mine)]))
    assert mine.read_bytes() == before and not mine.with_suffix(".pdf").exists()
    for _ in range(2):
        main(parse(["plot", "--runs", str(swept), "--out", str(ours)]))


def test_a_sweep_is_in_the_table_of_latex_by_its_settings(swept, tmp_path):
    main(parse(["export", str(tmp_path / "t.tex"), "--runs", str(swept)]))
    text = (tmp_path / "t.tex").read_text()
    assert "VAE: zdim 5" in text and "105.000" in text
    assert sweeps.dimensions_table(find_runs(swept)[0])[1][-1][:2] == ["20", "91.50 ± 0.71 (2)"]
