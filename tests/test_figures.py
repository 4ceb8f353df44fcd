import csv
import errno
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from figures.__main__ import main, parse
from figures.drawing import picture
from figures.gallery import write_page
from figures.kinds import KINDS, NEEDED
from figures.report import FIGURES
from figures.runs import find_runs, newest_of_kind, read_run, unfinished_message
from figures.tables import comparison
from harness import files
from harness.classifier import read_record
from harness.errors import UserError
from tests.fake_runs import fake_run, fake_runs, unwrapped


def draw(base, *flags, n_missing=0):
    """Run `python -m figures draw` in this process; returns the text of the page."""
    command = parse(["draw", "--runs", str(base), "--out", str(base.parent / "out"), *flags])
    if n_missing:
        with pytest.raises(UserError, match=f"{n_missing} reasons above"):
            main(command)
    else:
        main(command)
    return unwrapped((base.parent / "out" / "README.md").read_text())


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """The runs of a full report, the page and the folder of the figures."""
    base = tmp_path_factory.mktemp("report") / "runs"
    fake_run(base / "vae", "vae", val_neg_elbo_nats=lambda epoch: 104 - epoch / 10)
    fake_run(base / "gan", "gan", g_loss=lambda batch: batch / 187_500)
    fake_runs(base, *(kind for kind in KINDS if kind not in ("vae", "gan")))
    return base, draw(base), base.parent / "out" / "report"


def test_every_figure_of_the_report_is_drawn(full):
    base, text, report = full
    assert {int(path.name[3:5]) for path in report.glob("fig*.png")} == set(range(2, 19))
    for curves in ("fig02_elbo", "fig08_gan_loss", "fig14_bpd"):
        assert (report / f"{curves}.pdf").read_bytes().startswith(b"%PDF")
    drawn = (report / "fig10_gan_10000_batches.png").read_bytes()
    assert drawn == (base / "gan/samples_010000.png").read_bytes()
    links = re.findall(r"\]\((.*?)\)", text)
    assert len(links) == len(FIGURES) + 3  # the tables and the recipes
    assert all((report.parent / link).exists() for link in links)


def test_every_caption_names_its_run(full):
    _, text, _ = full
    for figure in FIGURES:
        start = f"**Figure {figure.number}.** {figure.caption}"
        caption = next(line for line in text.splitlines() if line.startswith(start))
        assert f"run `{figure.kind}`, seed 0" in caption and "an abacus" in caption
        assert "of 100" not in caption


def test_the_page_has_the_graded_table_and_the_evidence(full):
    _, text, _ = full
    row = "validation negative ELBO (nats) | epoch 40 | 100.000 | 100.600 | pass |"
    assert f"| VAE, 20 latent dimensions | {row}" in text
    ends = (
        "Its computation ends at 79.00 nats where the negative ELBO of the same weights is 100.00."
    )
    assert ends in text and "one-sided losses average 0.95 (generator) and 1.10 nats" in text
    assert "needs a run" not in text


def test_the_page_links_its_tables(full):
    _, text, report = full
    assert (
        "[every finished run](report/results.csv) as CSV, [the means](report/results.tex)" in text
    )
    runs = csv.DictReader((report / "results.csv").read_text().splitlines())
    assert sorted(run["run"] for run in runs) == sorted(KINDS)
    assert "validation negative ELBO (nats) & epoch 40" in (report / "results.tex").read_text()


def test_the_models_samples_are_compared(full):
    _, text, _ = full
    assert "| | VAE, means | VAE, draws | GAN | flow |" in text
    values = "0.50 (0.50) | 0.50 (0.50) | 3.00 (0.50) | 0.50 (0.50)"
    assert f"| Fréchet distance (lower is better) | {values} |" in text
    assert "10,000 samples each, against" in text and "a test accuracy of 99.00%." in text
    floor = read_record()["floors"]["shifted"]["frechet_floor"]
    assert f"shifted alike have a Fréchet distance of {floor:.2f}, precision" in text.replace(
        "\n", " "
    )


def test_the_numbers_of_samples_are_those_of_all_runs(tmp_path):
    base = fake_runs(tmp_path / "runs", "vae", "gan")
    result = base / "gan" / "result.json"
    content = json.loads(result.read_text())
    content["quality"] |= {"n_samples": 100, "classifier_accuracy": 0.985}
    result.write_text(json.dumps(content))
    found, _ = find_runs(base)
    groups = {name: newest_of_kind(found, kind) for name, kind in KINDS.items()}
    text = comparison(groups)[-1]
    assert "100 to 10,000 samples each, against" in text
    assert "a test accuracy of 98.50% to 99.00%." in text


def test_a_gallery_that_cannot_be_written_leaves_the_old_one(full, tmp_path, monkeypatch):
    base, _, _ = full
    (tmp_path / "README.md").write_text("the old one")

    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("harness.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_page(tmp_path, [], dict.fromkeys(KINDS, []), [], [], quick=False)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "the old one"
    with pytest.raises(OSError, match="No space left"):
        picture("samples_100.png")([read_run(base / "vae")], tmp_path / "fig.png", None)
    assert not (tmp_path / "fig.png").exists()


def test_a_missing_run_is_named_with_its_command_and_the_rest_is_drawn(tmp_path, capsys):
    text = draw(fake_runs(tmp_path / "runs", "gan"), n_missing=len(NEEDED) - 1)
    error = capsys.readouterr().err
    assert "fig14_bpd, fig15_nf_before_training" in error
    command = f"python -m figures train --kinds nf --runs {tmp_path / 'runs'}"
    assert command in error and command in text
    assert "larochelle" not in error and "nf_report" not in error  # the report needs neither
    assert "(Evidence needs a run that is not there.)" in text
    report = tmp_path / "out" / "report"
    assert (report / "fig08_gan_loss.png").exists() and not (report / "fig14_bpd.png").exists()


def test_pictures_and_captions_of_a_short_run_say_so(tmp_path):
    run = fake_run(tmp_path / "runs" / "nf", "nf", "--epochs", "40")
    (run / "samples_100.png").rename(run / "samples_040.png")
    text = draw(tmp_path / "runs", n_missing=5)
    caption = next(line for line in text.splitlines() if line.startswith("**Figure 18."))
    assert "40 epochs" in caption and "**40 of 100 epochs**" in caption
    assert "shown after 40 epochs)" in caption
    report = tmp_path / "out" / "report"
    assert not (report / "fig18_nf_100_epochs.png").exists()  # the name would not be true
    assert {path.stem for path in report.glob("results*")} == {"results-short"}
    picture = imread(report / "fig18_nf_100_epochs-short.png")
    original = imread(run / "samples_040.png")
    assert picture.shape[0] > original.shape[0] and np.array_equal(picture[-60:], original)
    assert "| - | 1.804 | not reached |" in text


def test_incomplete_metrics_and_results_cost_a_figure_and_not_the_gallery(tmp_path, capsys):
    base = fake_runs(tmp_path / "runs", "vae", "gan", "nf")
    metrics, result = base / "nf" / "metrics.jsonl", base / "gan" / "result.json"
    metrics.write_text(metrics.read_text().replace('"train_bpd": 1.8, ', "", 1))
    (base / "nf" / "samples_000.png").unlink()
    (base / "nf" / "samples_100.npz").write_bytes(b"damaged")
    content = json.loads(result.read_text())
    del content["quality"]["frechet_distance"]
    result.write_text(json.dumps(content))
    text = draw(base, n_missing=5)  # and three runs
    error = capsys.readouterr().err
    assert "fig15_nf_before_training: " in error and "is missing" in error
    assert "strip: " in error and "samples_100.npz holds no samples" in error
    assert "![Bits per dimension" in text  # the curves are of the lines that have a value
    assert "| | VAE, means | VAE, draws | flow |" in text


def test_nothing_is_written_over_where_there_is_no_run(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    with pytest.raises(UserError, match="there is no folder .*typo"):
        draw(tmp_path / "typo")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no finished run in .*empty"):
        draw(tmp_path / "empty")
    assert (tmp_path / "out" / "README.md").read_text() == "mine"


def test_a_changed_copy_s_run_is_no_run_of_the_script(tmp_path):
    folder = fake_run(tmp_path / "runs" / "nf", "nf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"program": "my_flow.py"}))
    with pytest.raises(UserError, match="'my_flow.py', a changed copy of a3_nf_template.py"):
        read_run(folder)


def test_runs_on_other_data_alone_make_a_gallery(tmp_path):
    fake_run(tmp_path / "runs" / "dressed", "vae", "--dataset", "fashion")
    text = draw(tmp_path / "runs", n_missing=len(NEEDED))
    assert "| FashionMNIST | VAE, 20 latent dimensions | validation negative ELBO" in text
    assert "## Graded" not in text and "## Figures" not in text


def test_seeds_are_aggregated(tmp_path):
    base = fake_runs(tmp_path / "runs", "vae")
    for seed, nats in (("1", 101.0), ("2", 99.0)):
        fake_run(base / f"seed{seed}", "vae", "--seed", seed, val_neg_elbo_nats=nats)
    text = draw(base, n_missing=5)
    quantity = "| VAE, 20 latent dimensions | validation negative ELBO (nats) | epoch 40 |"
    assert f"{quantity} 100.000 ± 1.000 (3) | 100.600 | falls short: 2 of 3 seeds pass |" in text
    assert "| | VAE, means, 3 seeds | VAE, draws, 3 seeds |" in text
    assert "| Fréchet distance (lower is better) | 0.50 ± 0.00 (0.50) |" in text
    assert "| VAE, 20 latent dimensions | active latent units | end | 20 ± 0 (3) |" in text
    runs = "runs `vae`, `seed1`, `seed2`, seeds 0, 1, 2: mean and min-max band, 100 epochs"
    assert f"({runs}, an abacus)" in text
    samples = next(line for line in text.splitlines() if line.startswith("**Figure 6."))
    assert "run `vae`, seed 0, 100 epochs" in samples  # a picture is of one run


def test_seeds_of_a_flow_are_compared_where_all_were_measured(tmp_path):
    """One that was resumed has a value more."""
    base = fake_runs(tmp_path / "runs", "nf")
    fewer = fake_run(base / "nf1", "nf", "--seed", "1") / "metrics.jsonl"
    lines = fewer.read_text().splitlines(keepends=True)
    lines[49] = lines[49].replace('"val_bpd_shifted": 1.795, ', "")
    fewer.write_text("".join(lines))
    draw(base, n_missing=5)
    assert (tmp_path / "out" / "report" / "fig14_bpd.png").exists()


def test_a_gallery_is_drawn_beside_its_runs_unless_a_folder_is_named(tmp_path):
    """The one in the repository is replaced only by whoever says so."""
    base = tmp_path / "runs"
    assert parse(["draw"]).out == Path("runs/figures")
    assert parse(["draw", "--quick"]).out == Path("runs/quick/figures")
    assert parse(["draw", "--runs", str(base)]).out == base / "figures"
    assert parse(["draw", "--runs", str(base), "--out", "figures"]).out == Path("figures")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["draw", "--runs", "{file}"], "--runs .*mine is a file, not a folder"),
        (["train", "--runs", "{file}"], "--runs .*mine is a file, not a folder"),
        (["draw", "--out", "{file}"], "--out .*mine is a file, not a folder"),
        (["draw", "--vae", "{file}"], "mine is a file, not a run folder"),
    ],
)
def test_a_file_in_place_of_a_folder_is_said_to_be_one(tmp_path, flags, words):
    (tmp_path / "mine").write_text("mine")
    flags = [flag.format(file=tmp_path / "mine") for flag in flags]
    with pytest.raises(UserError, match=words):
        main(parse(flags))
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_chosen_run_is_drawn_instead_of_the_newest(tmp_path):
    base = fake_runs(tmp_path / "runs", "manifold")
    chosen = fake_run(tmp_path / "mine", "manifold", "--lr", "0.1", started="2020")
    text = draw(base, "--manifold", str(chosen))  # without a complaint about the other kinds
    assert text.count("no finished run of the default settings") == 5
    assert "\nmine,a3_vae_template.py" in (tmp_path / "out/report/results.csv").read_text()
    assert "run `mine`" in text and "run `manifold`" not in text
    assert "| VAE: zdim 2, lr 0.1 |" in text and "| VAE, 2 latent dimensions |" not in text


def test_one_figure_of_a_run_given_by_hand_is_drawn_without_a_word_about_others(tmp_path, capsys):
    """However short the run is, and whatever stands beside it."""
    base = tmp_path / "runs"
    (fake_run(base / "manifold", "manifold") / "result.json").unlink()
    (fake_run(base / "vae", "vae") / "metrics.jsonl").write_text("nonsense\n")
    short = fake_run(tmp_path / "mine", "manifold", "--epochs", "3")
    flags = ["draw", "--only", "fig07", "--manifold", str(short), "--out", str(tmp_path / "out")]
    for runs in (base, Path("runs")):  # there need not be any other run
        main(parse([*flags, "--runs", str(runs)]))
        assert capsys.readouterr().err == ""
    drawn = tmp_path / "out" / "report" / "fig07_vae_manifold.png"
    files = {path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {drawn, drawn.with_suffix(".pdf")}


def test_of_several_figures_those_with_a_run_are_drawn(tmp_path, capsys):
    base = fake_runs(tmp_path / "runs", "vae")
    main(parse(["draw", "--only", "fig02", "--runs", str(base)]))
    assert capsys.readouterr().err == ""
    drawn = {path.name for path in (base / "figures" / "report").iterdir()}
    assert drawn == {"fig02_elbo.png", "fig02_elbo.pdf"}
    with pytest.raises(UserError, match="no finished run"):
        main(parse(["draw", "--only", "fig14", "--runs", str(base)]))
    with pytest.raises(UserError, match="--only fig1_: the figures are fig02_elbo, "):
        main(parse(["draw", "--only", "fig1_", "--runs", str(base)]))


def test_a_run_of_every_kind_can_be_given_by_hand():
    assert list(vars(parse(["draw"]).chosen)) == list(KINDS)


def test_a_run_with_a_truncated_last_line_is_drawn_with_a_warning(tmp_path, capsys):
    base = fake_runs(tmp_path / "runs", "manifold")
    with open(base / "manifold" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 101, "val_n')
    assert "run `manifold`, seed 0, 100 epochs" in draw(base, n_missing=5)
    error = capsys.readouterr().err
    assert "manifold/metrics.jsonl: the last line is truncated, not used" in error


@pytest.mark.skipif(files.fcntl is None, reason="needs locks on folders")
def test_a_run_in_training_is_not_to_be_resumed(tmp_path):
    folder = fake_runs(tmp_path, "nf") / "nf"
    (folder / "result.json").unlink()
    lock = files.try_lock(folder)
    assert unfinished_message(read_run(folder)) == f"{folder} is in training (epoch 100)"
    os.close(lock)
    assert unfinished_message(read_run(folder)) == f"{folder} is unfinished (epoch 100)" + (
        " and has no checkpoint"
    )
    (folder / "checkpoint.pt").touch()
    assert "; resume with: python a3_nf_template.py" in unfinished_message(read_run(folder))


def test_unfinished_foreign_and_damaged_runs_are_named(tmp_path, capsys):
    base = fake_runs(tmp_path / "runs", *NEEDED)
    (base / "nf" / "result.json").unlink()
    (base / "nf" / "checkpoint.pt").touch()
    (base / "gan" / "metrics.jsonl").write_text('{"batch": 500, "other": 1}\n')
    (base / "vae" / "metrics.jsonl").write_text("nonsense\n")
    (base / "vae_report" / "config.json").write_text("{}")
    assert "run `manifold`" in draw(base, n_missing=4)
    error = capsys.readouterr().err
    for words in (
        "nf is unfinished (epoch 100); resume with: python a3_nf_template.py --resume",
        "gan: metrics.jsonl holds no",
        "vae/metrics.jsonl: line 1 is damaged",
        "vae_report is not a run folder",
    ):
        assert words in error
