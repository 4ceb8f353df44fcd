import json
import os
import re
import shutil

import pytest

from figures.__main__ import main, parse
from figures.kinds import KINDS
from figures.runs import chosen_run, find_runs, newest_of_kind, read_run
from figures.strip import panels_of
from figures.tables import other_data
from harness import records
from harness.errors import UserError
from tests.fake_runs import VALUES, fake_run, fake_runs


def newest(base, kind):
    """The names of the runs that a figure shows."""
    found, messages = find_runs(base)
    assert messages == []
    return [run.folder.name for run in newest_of_kind(found, KINDS[kind])]


def test_the_newest_run_of_full_length_is_drawn(tmp_path):
    fake_run(tmp_path / "old", "nf", started="2026")
    fake_run(tmp_path / "new", "nf", started="2027")
    fake_run(tmp_path / "short", "nf", "--epochs", "3", started="2028")
    fake_run(tmp_path / "other_lr", "nf", "--lr", "0.1", "--seed", "5", started="2025")
    assert newest(tmp_path, "nf") == ["new"]
    fake_run(tmp_path / "seed7", "nf", "--seed", "7", started="2024")
    fake_run(tmp_path / "seed3", "nf", "--seed", "3", started="2025")
    assert newest(tmp_path, "nf") == ["new", "seed3", "seed7"]


def test_other_settings_are_not_the_report_s(tmp_path):
    fake_runs(tmp_path, "vae", "nf")
    fake_run(tmp_path / "ablation", "vae", "--binarize", "threshold", started="2027")
    fake_run(tmp_path / "small", "nf", "--n_hidden", "64", started="2027")
    assert newest(tmp_path, "vae") == ["vae"] and newest(tmp_path, "nf") == ["nf"]
    fake_run(tmp_path / "evaluated", "vae", "--importance_samples", "7", started="2028")
    assert newest(tmp_path, "vae") == ["evaluated"]  # the training is the same


@pytest.mark.parametrize(
    ("name", "folder", "words"),
    [
        ("nf", "gan", "--nf .*gan: a run of a3_gan_template.py, not of a3_nf_template.py"),
        ("manifold", "vae", "--manifold .*vae: its zdim is 20, not 2"),
        ("vae_report", "vae", "--vae_report .*vae: its protocol is standard, not report"),
        ("manifold", "absent", "absent is not a run folder"),
        ("gan", "gan", r"--gan: .*gan is unfinished \(batch 187,500\)"),
    ],
)
def test_a_chosen_run_must_be_a_finished_one_of_its_kind(tmp_path, name, folder, words):
    fake_runs(tmp_path, "vae", "manifold", "gan")
    (tmp_path / "gan" / "result.json").unlink()
    with pytest.raises(UserError, match=words):
        chosen_run(name, KINDS[name], tmp_path / folder)
    assert chosen_run("vae", KINDS["vae"], tmp_path / "vae").folder.name == "vae"
    fake_run(tmp_path / "own", "vae", "--dataset", str(tmp_path), "--epochs", "1")
    assert chosen_run("vae", KINDS["vae"], tmp_path / "own").n_epochs == 1
    assert chosen_run("vae", KINDS["vae"], tmp_path / "manifold").settings["zdim"] == 2


def check(base, capsys):
    with pytest.raises(SystemExit) as exit:
        main(parse(["check", "--runs", str(base)]))
    captured = capsys.readouterr()
    return exit.value.code, captured.out, captured.err


def test_check_fails_if_a_run_falls_short_and_writes_nothing(tmp_path, capsys):
    fake_runs(tmp_path, *KINDS)
    before = sorted(tmp_path.rglob("*"))
    status, text, _ = check(tmp_path, capsys)
    assert status == 0 and "falls short: 0, not plausible: 0, not reached: 0" in text
    bad = fake_run(tmp_path / "bad", "nf", val_bpd_shifted=1.9)
    status, text, _ = check(tmp_path, capsys)
    assert status == 1 and "falls short: 4," in text
    assert f"{bad}: a3_nf_template.py, seed 0, 100 epochs" in text
    shutil.rmtree(bad)
    assert sorted(tmp_path.rglob("*")) == before


def test_check_fails_if_a_number_is_too_good(tmp_path, capsys):
    fake_run(tmp_path / "nf", "nf", val_bpd_shifted=0.9)
    status, text, _ = check(tmp_path, capsys)
    assert status == 1 and "falls short: 0, not plausible: 4" in text


def test_check_grades_the_mean_of_several_seeds_and_counts_those_that_pass(tmp_path, capsys):
    for seed, bpd in (("0", 1.80), ("1", 1.81), ("2", 1.89)):
        fake_run(tmp_path / f"nf{seed}", "nf", "--seed", seed, val_bpd_shifted=bpd)
    fake_run(tmp_path / "other", "nf", "--seed", "3", "--lr", "0.1", val_bpd=9.0)
    status, text, _ = check(tmp_path, capsys)
    assert status == 1  # a seed falls short, though the mean passes
    assert text.count("mean of seeds") == 1
    assert "mean of seeds 0, 1, 2: nf0, a3_nf_template.py, 100 epochs" in text
    line = next(line for line in text.splitlines() if "demand" in line and "±" in line)
    cells = ["40", "1.833 ± 0.049 (3)", "1.850", "falls short: 2 of 3 seeds pass"]
    assert re.split("  +", line)[2:] == cells


def test_check_of_an_unfinished_or_short_gan_fails_no_row(tmp_path, capsys):
    """Its samples are no worse than they have to be."""
    collapsed = {"samples": {"spread": 0.1, "repeats": 99}}
    for name, result in (("short", collapsed), ("unfinished", None)):
        folder = fake_run(tmp_path / name, "gan", "--n_epochs", "20")
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        (folder / "metrics.jsonl").write_text("".join(lines[:37]))
        (folder / "result.json").unlink()
        if result is not None:
            (folder / "result.json").write_text(json.dumps(result))
        rows = read_run(folder).graded()
        assert len(rows) == 4 and {row.verdict for row in rows} == {"not reached"}
    fake_run(tmp_path / "nf", "nf")
    status, text, _ = check(tmp_path, capsys)
    assert status == 0 and "falls short: 0, not plausible: 0, not reached: 8" in text


@pytest.mark.parametrize(("count", "words"), [(1, "1 epoch"), (2, "2 epochs")])
def test_a_length_has_its_plural(tmp_path, count, words):
    assert read_run(fake_run(tmp_path / "nf", "nf", "--epochs", str(count))).length == words


def test_runs_on_other_data_are_in_a_table_of_their_own(tmp_path):
    """They are never mixed with those on MNIST, newer ones neither."""
    fashion = ("--dataset", "fashion")
    fake_run(tmp_path / "nf", "nf", val_bpd=lambda epoch: 1.703 - epoch / 1000)
    fake_run(tmp_path / "nf1", "nf", "--seed", "1", val_bpd=lambda epoch: 1.803 - epoch / 1000)
    fake_run(tmp_path / "dressed", "nf", "--epochs", "3", *fashion, started="2028", val_bpd=3.25)
    fake_run(tmp_path / "long", "nf", *fashion, "--seed", "2", started="2027", val_bpd=3.0)
    assert newest(tmp_path, "nf") == ["nf", "nf1"]
    found, _ = find_runs(tmp_path)
    groups = {name: newest_of_kind(found, kind) for name, kind in KINDS.items()}
    lines = other_data([run for run in found if run.folder.name != "long"], groups)
    row = "| FashionMNIST | flow (RealNVP) | validation (bits/dim) | epoch 3 |"
    assert f"{row} 3.250 | 1.750 ± 0.071 (2) |" in lines
    assert "so these values are not comparable with them" in lines[-1]
    assert f"{row[:-4]} 100 | 3.000 | 1.653 ± 0.071 (2) |" in other_data(found, groups)
    assert other_data([run for run in found if run.dataset == "mnist"], groups) == []
    assert chosen_run("nf", KINDS["nf"], tmp_path / "long").dataset == "fashion"  # as given


def test_losses_of_a_gan_on_other_data_are_means_of_its_last_tenth(tmp_path):
    """Those on MNIST are as if their runs had ended there, at the last logged batch."""
    fashion = ("--dataset", "fashion", "--n_epochs", "20")
    folder = fake_run(tmp_path / "gan", "gan", *fashion, g_loss=lambda batch: batch / 1000)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)[:37]
    last = json.dumps(json.loads(lines[-1]) | {"batch": 18_750, "g_loss": 18.75})
    (folder / "metrics.jsonl").write_text("".join(lines) + last + "\n")
    fake_run(tmp_path / "mnist", "gan", g_loss=lambda batch: batch / 100)
    found, _ = find_runs(tmp_path)
    groups = {name: newest_of_kind(found, kind) for name, kind in KINDS.items()}
    row = "| FashionMNIST | GAN | generator loss, last tenth (nats) | batch 18,750 |"
    assert f"{row} 17.950 | 177.500 |" in other_data(found, groups)


def test_check_grades_one_run_of_many(tmp_path, capsys):
    good, bad = (
        fake_run(tmp_path / "good", "nf"),
        fake_run(tmp_path / "bad", "nf", val_bpd_shifted=1.9),
    )
    for folder, status in ((good, 0), (bad, 1)):
        with pytest.raises(SystemExit) as exit:
            main(parse(["check", "--runs", str(folder)]))
        assert exit.value.code == status and str(folder) in capsys.readouterr().out


def test_check_names_own_images_once_and_not_in_every_row(tmp_path, capsys):
    images = tmp_path / "a long way" / "pictures"
    fake_run(tmp_path / "good", "nf")
    own = fake_run(tmp_path / "own", "nf", "--dataset", str(images))
    status, text, _ = check(tmp_path, capsys)
    assert status == 0 and text.count(str(images)) == 1
    assert f"{own}: a3_nf_template.py, seed 0, 100 epochs, on {images}\n" in text
    assert text.count("not comparable: dataset is .../pictures, not mnist\n") == 4


def test_check_grades_any_metrics_of_the_same_form(tmp_path, capsys):
    values = VALUES["a3_vae_template.py"]
    lines = [json.dumps({"epoch": epoch} | values) for epoch in range(1, 51)]
    (tmp_path / "a_student" / "vae").mkdir(parents=True)
    path = tmp_path / "a_student" / "vae" / "metrics.jsonl"
    path.write_text("\n".join(lines) + "\n")
    assert read_run(path.parent).finished  # so it is drawn
    assert check(tmp_path, capsys)[0] == 0
    path.write_text("\n".join(lines).replace("100.0", "103.5") + "\n")
    assert check(tmp_path, capsys)[0] == 1


@pytest.mark.parametrize(
    "name, text, status, words",
    [
        ("m.jsonl", '{"val_neg_elbo_nats": 79.4, "epoch": 40}', 1, "see README, Why 79.458 is not"),
        ("m.csv", "val_neg_elbo_nats,name,epoch\n-101,x,40\n", 1, "not plausible for this model"),
        ("m.csv", "note,epoch,val_neg_elbo_nats\n,39,\n,40,99.5", 0, "pass: 1"),
        ("m.csv", "val_bpd_shifted,epoch\n1.81,40", 0, "pass: 2"),
    ],
)
def test_check_grades_reported_numbers(tmp_path, capsys, name, text, status, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as exit:
        main(parse(["check", str(tmp_path / name)]))
    assert exit.value.code == status and words in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, text", [("m.csv", "elbo,epoch\n1,2\n"), ("m.csv", "epoch,val_bpd_shifted\n1.5,1\n"),
                   ("m.csv", "epoch;val_bpd_shifted\n1;1\n"), ("m.jsonl", "[1]"), ("m.csv", ""),
                   ("no", None), ("m.csv", "epoch,val_bpd_shifted\n2,1\n1,1\n")]
)  # fmt: skip
def test_other_numbers_than_ours_end_in_one_line(tmp_path, name, text):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError):
        main(parse(["check", str(tmp_path / name)]))


def test_check_of_nothing_or_of_damaged_runs_does_not_pass(tmp_path, capsys):
    with pytest.raises(UserError, match="nothing could be graded"):
        main(parse(["check", "--runs", str(tmp_path)]))
    fake_run(tmp_path / "good", "vae")
    fake_run(tmp_path / "bad", "vae")
    (tmp_path / "bad" / "metrics.jsonl").write_text("nonsense\n")
    status, _, error = check(tmp_path, capsys)
    assert status == 1 and "bad/metrics.jsonl: line 1 is damaged" in error


def damage_picture(run):
    (run / "samples_100.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"x" * 99)


def damage_arrays(run, name="samples_100"):
    (run / f"{name}.npz").write_bytes(b"PK\x03\x04" + b"x" * 99)


def replace_by_fifo(run):
    (run / "samples_100.npz").unlink()
    os.mkfifo(run / "samples_100.npz")


def test_damaged_pictures_are_named_in_one_line_each(tmp_path, capsys):
    fake_runs(tmp_path, "vae", "manifold", "gan", "nf")
    damage_picture(tmp_path / "nf")
    damage_arrays(tmp_path / "manifold", "manifold_100")
    for damage in (damage_arrays, replace_by_fifo):
        damage(tmp_path / "vae")
        groups = {name: newest_of_kind(find_runs(tmp_path)[0], KINDS[name]) for name in KINDS}
        with pytest.raises(UserError, match="samples_100.npz holds no samples"):
            panels_of(groups)
    for figure, words in (
        ("fig07", "manifold_100.npz holds no samples"),
        ("fig18_nf_100", "samples_100.png is damaged"),
    ):
        with pytest.raises(UserError, match="not all figures"):
            main(parse(["draw", "--runs", str(tmp_path), "--only", figure]))
        assert words in capsys.readouterr().err


def test_a_copy_beside_the_pictures_of_a_run_is_no_picture_of_it(tmp_path):
    run = fake_runs(tmp_path, "vae") / "vae"
    for suffix in (".png", ".npz"):
        (run / f"samples_001 (copy){suffix}").write_bytes(b"")
        assert sorted(records.numbered(run, "samples", suffix)) == [0, 1, 10, 100]


@pytest.mark.parametrize("device", [["a", "list"], {}, 1])
def test_a_config_whose_texts_are_none_is_refused(tmp_path, device):
    run = fake_runs(tmp_path, "vae") / "vae"
    config = json.loads((run / "config.json").read_text()) | {"device": device}
    (run / "config.json").write_text(json.dumps(config))
    found, messages = find_runs(tmp_path)
    assert not found and len(messages) == 1 and "its device is no text" in messages[0]


@pytest.mark.parametrize("value", [1e308, 10**400])
def test_values_beyond_float32_are_damage(tmp_path, value):
    fake_run(tmp_path / "run", "vae", val_neg_elbo_nats=value)
    found, messages = find_runs(tmp_path)
    assert not found and "metrics.jsonl: line 1 is damaged" in messages[0]


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "result.json"])
def test_a_fifo_in_a_run_folder_is_one_line(tmp_path, name):
    run = fake_runs(tmp_path, "vae") / "vae"
    (run / name).unlink()
    os.mkfifo(run / name)
    found, messages = find_runs(tmp_path)
    assert not found and len(messages) == 1 and name in messages[0]


def test_folders_beyond_the_longest_path_are_one_line(tmp_path):
    fake_runs(tmp_path, "vae")
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        for _ in range(25):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
    finally:
        os.chdir(before)
    (tmp_path / "circle").symlink_to(tmp_path)
    found, messages = find_runs(tmp_path)
    assert len(found) == 1 and len(messages) == 1
    assert "File name too long" in messages[0] and len(messages[0]) < 300
