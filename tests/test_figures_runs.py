import json
import shutil

import pytest

from figures.__main__ import chosen_run, main, parse_args
from figures.kinds import KINDS
from figures.runs import find_runs, newest_of_kind, read_run
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
        ("vae", "manifold", "--vae .*manifold: its zdim is 2, not 20"),
        ("vae_report", "vae", "--vae_report .*vae: its protocol is standard, not report"),
        ("manifold", "absent", "absent is not a run folder"),
        ("gan", "gan", r"--gan: .*gan is unfinished \(batch 187,500\)"),
    ],
)
def test_a_chosen_run_must_be_a_finished_one_of_its_kind(tmp_path, name, folder, words):
    fake_runs(tmp_path, "vae", "manifold", "gan")
    (tmp_path / "gan" / "result.json").unlink()
    with pytest.raises(UserError, match=words):
        chosen_run(name, tmp_path / folder)
    assert chosen_run("vae", tmp_path / "vae").folder.name == "vae"


# As the first version of this project wrote it.
OLD_ARGUMENTS = {
    "n_epochs": 1,
    "latent_dim": 100,
    "batch_size": 64,
    "lr": 0.0002,
    "save_interval": 500,
    "protocol": "report",
    "real_label": 0.9,
    "n": 100,
    "seed": 3,
    "device": "cpu",
    "no_graph": False,
    "quality_samples": 0,
    "fake_label": 0.1,
    "generate": None,
    "data_dir": None,
    "out": "runs/gan-report-seed3",
}


def test_runs_of_the_first_version_are_read(tmp_path):
    fake_run(tmp_path / "gan", "gan_report")
    config = {"script": "a3_gan_template.py", "arguments": OLD_ARGUMENTS, "device": "an abacus"}
    (tmp_path / "gan" / "config.json").write_text(json.dumps(config))
    run = read_run(tmp_path / "gan")
    assert run.args.dataset == "mnist" and not run.args.download
    assert run.finished and run.args.seed == 3 and run.args.fake_label == 0.1
    assert {row["verdict"] for row in run.graded()} == {"pass"}
    (tmp_path / "gan" / "result.json").unlink()
    run = read_run(tmp_path / "gan")
    assert not run.finished and run.results == {} and run.n_epochs == 1


def check(base, capsys):
    with pytest.raises(SystemExit) as exit:
        main(parse_args(["--runs", str(base), "--check"]))
    captured = capsys.readouterr()
    return exit.value.code, captured.out, captured.err


def test_check_fails_if_a_run_falls_short_and_writes_nothing(tmp_path, capsys):
    fake_runs(tmp_path, *KINDS)
    before = sorted(tmp_path.rglob("*"))
    status, text, _ = check(tmp_path, capsys)
    assert status == 0 and "falls short: 0, not reached: 0" in text
    bad = fake_run(tmp_path / "bad", "nf", val_bpd=1.9)
    status, text, _ = check(tmp_path, capsys)
    assert status == 1 and "falls short: 4," in text
    assert f"{bad}: a3_nf_template.py, seed 0, 100 epochs" in text
    shutil.rmtree(bad)
    assert sorted(tmp_path.rglob("*")) == before


def test_check_grades_only_chosen_runs(tmp_path, capsys):
    good, bad = fake_run(tmp_path / "good", "nf"), fake_run(tmp_path / "bad", "nf", val_bpd=1.9)
    for folder, status in ((good, 0), (bad, 1)):
        with pytest.raises(SystemExit) as exit:
            main(parse_args(["--runs", str(tmp_path), "--check", "--nf", str(folder)]))
        assert exit.value.code == status and str(folder) in capsys.readouterr().out


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


def test_check_of_nothing_or_of_damaged_runs_does_not_pass(tmp_path, capsys):
    with pytest.raises(UserError, match="nothing could be graded"):
        main(parse_args(["--runs", str(tmp_path), "--check"]))
    fake_run(tmp_path / "good", "vae")
    fake_run(tmp_path / "bad", "vae")
    (tmp_path / "bad" / "metrics.jsonl").write_text("nonsense\n")
    status, _, error = check(tmp_path, capsys)
    assert status == 1 and "bad/metrics.jsonl: line 1 is damaged" in error
