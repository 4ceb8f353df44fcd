"""Runs kept in one file, without weights and pictures."""

import json
import re

import pytest

from figures.__main__ import main, parse
from figures.kinds import KINDS, NEEDED
from figures.recorded import read_recorded
from figures.report import FIGURES
from figures.runs import chosen_run, find_runs
from harness.errors import UserError
from tests.fake_runs import fake_run, fake_runs, unwrapped


def figures(*flags):
    """Run `python -m figures` in this process."""
    main(parse([str(flag) for flag in flags]))


def empty(tmp_path):
    """A folder without runs."""
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def contents(runs):
    """What tables and curves show of the runs."""
    return [
        (run.folder.name, run.script, run.seed, run.history, run.results, run.graded())
        for run in runs
    ]


@pytest.fixture
def recorded(tmp_path):
    """The folder of three runs, one of them unfinished, and the file of the two others."""
    base, path = tmp_path / "runs", tmp_path / "runs.jsonl"
    fake_run(base / "vae1", "vae", "--seed", "1", "--out", "/home/ada/runs/vae1", started="2025")
    fake_run(base / "flow", "nf", val_bpd=lambda epoch: 1.79 + 0.1 / epoch, started="2026")
    config = base / "flow" / "config.json"
    content = json.loads(config.read_text())
    content |= {"command": "python a3.py --out /home/ada/flow"}
    content |= {"resumed": [{"from": 9, "command": "python a3.py --resume /home/ada/flow"}]}
    config.write_text(json.dumps(content))
    (fake_run(base / "gan", "gan", started="2027") / "result.json").unlink()
    figures("export", path, "--runs", base)
    return base, path


def test_a_recorded_run_is_the_same_without_its_folder(recorded, tmp_path):
    base, path = recorded
    text = path.read_text()
    again = tmp_path / "again.jsonl"
    figures("export", again, "--runs", empty(tmp_path), "--recorded", path)
    assert again.read_text() == text
    names = [json.loads(line)["run"] for line in text.splitlines()]
    assert names == ["vae1", "flow"]  # the finished ones, oldest first
    assert "home" not in text and str(tmp_path) not in text and '"from": 9' in text
    finished = [run for run in find_runs(base)[0] if run.finished]
    assert contents(read_recorded(path)) == contents(finished)


def test_recorded_runs_are_checked_without_any_folder(recorded, tmp_path, capsys):
    _, path = recorded
    with pytest.raises(SystemExit) as caught:
        figures("check", "--runs", empty(tmp_path), "--recorded", path)
    assert caught.value.code == 0
    assert "vae1: a3_vae_template.py, seed 1, 100 epochs" in capsys.readouterr().out


def test_a_run_in_both_counts_once(recorded, tmp_path):
    base, path = recorded
    both = tmp_path / "both.csv"
    figures("export", both, "--runs", base, "--recorded", path)
    names = [line.split(",")[0] for line in both.read_text().splitlines()]
    assert names == ["run", "vae1", "flow", "gan"]


def test_of_a_run_that_goes_on_the_finished_record_counts(recorded, tmp_path):
    base, path = recorded
    (base / "flow" / "result.json").unlink()
    figures("export", tmp_path / "both.json", "--runs", base, "--recorded", path)
    both = json.loads((tmp_path / "both.json").read_text())
    flows = [(run["run"], run["finished"]) for run in both if run["run"] == "flow"]
    assert sorted(flows) == [("flow", False), ("flow", True)]


def test_runs_without_a_start_are_never_taken_for_the_same(tmp_path):
    path = tmp_path / "runs.jsonl"
    for person, bpd in (("ada", 1.79), ("bob", 1.95)):
        folder = fake_run(tmp_path / "class" / person / "nf", "nf", val_bpd_shifted=bpd)
        (folder / "config.json").unlink()  # as another program may have written it
    figures("export", path, "--runs", tmp_path / "class")
    assert len(path.read_text().splitlines()) == 2
    with pytest.raises(SystemExit) as caught:  # Bob's falls short
        figures("check", "--runs", tmp_path / "class", "--recorded", path)
    assert caught.value.code == 1
    assert len(read_recorded(path)) == 2


def test_a_chosen_run_counts_once(recorded, tmp_path):
    base, path = recorded
    for runs in (base, empty(tmp_path)):
        chosen = [chosen_run("nf", KINDS["nf"], base / "flow")]
        found, _ = parse(["draw", "--runs", str(runs), "--recorded", str(path)]).find(chosen)
        flows = [run.chosen for run in found if run.folder.name == "flow"]
        assert flows == [True]


def test_a_folder_of_runs_that_is_misspelt_is_an_error(recorded):
    _, path = recorded
    with pytest.raises(UserError, match="there is no folder typo"):
        figures("check", "--runs", "typo", "--recorded", path)


def test_a_damaged_config_is_not_recorded(recorded):
    base, path = recorded
    config = base / "flow" / "config.json"
    config.write_text(config.read_text().replace('"resumed": [', '"resumed": 5, "more": ['))
    with pytest.raises(UserError, match="flow: its config.json is damaged"):
        figures("export", path, "--runs", base)


@pytest.mark.thorough
def test_curves_are_of_all_runs_and_pictures_of_one_with_a_folder(tmp_path):
    base, path = tmp_path / "runs", tmp_path / "runs.jsonl"
    fake_run(tmp_path / "old" / "flow0", "nf", "--seed", "0")
    figures("export", path, "--runs", tmp_path / "old")
    fake_runs(base, *(kind for kind in KINDS if kind != "nf"))
    fake_run(base / "flow1", "nf", "--seed", "1")
    figures("draw", "--runs", base, "--recorded", path, "--out", tmp_path / "out")
    page = unwrapped((tmp_path / "out" / "README.md").read_text())
    captions = {
        name: re.search(rf"{name}\.png\)\n\n(.*)", page)[1]
        for name in ("fig14_bpd", "fig18_nf_100_epochs")
    }
    assert "runs `flow0`, `flow1`, seeds 0, 1: mean and min-max band" in captions["fig14_bpd"]
    assert "run `flow1`, seed 1, 100 epochs" in captions["fig18_nf_100_epochs"]
    assert "| 1.790 ± 0.000 (2) |" in page
    shown = (tmp_path / "out" / "report" / "fig18_nf_100_epochs.png").read_bytes()
    assert shown == (base / "flow1" / "samples_100.png").read_bytes()


@pytest.mark.thorough
def test_recorded_runs_alone_draw_curves_and_tables(tmp_path, capsys):
    fake_runs(tmp_path / "runs", *NEEDED)
    path, out = tmp_path / "runs.jsonl", tmp_path / "out"
    figures("export", path, "--runs", tmp_path / "runs")
    with pytest.raises(UserError, match="not all figures could be drawn"):
        figures("draw", "--runs", empty(tmp_path), "--recorded", path, "--out", out)
    words = "fig07_vae_manifold: recorded runs have no pictures; give a run folder with --manifold"
    assert words in capsys.readouterr().err
    drawn = {file.stem for file in (out / "report").glob("*.png")}
    curves = {"fig02_elbo", "fig08_gan_loss", "fig14_bpd"}
    assert drawn == curves | {
        "fig02_elbo_report_protocol",
        "fig08_gan_loss_report_protocol",
        "recipes",
    }
    assert drawn - {"recipes"} < {figure.name for figure in FIGURES}


def test_a_recorded_run_need_not_be_trained(recorded, tmp_path, monkeypatch):
    _, path = recorded
    asked = []
    monkeypatch.setattr("figures.__main__.train", lambda missing, *_: asked.extend(missing))
    flags = ("--kinds", "nf", "--seeds", "2", "--recorded", path, "--device", "cpu")
    figures("train", "--runs", empty(tmp_path), *flags)
    assert [str(training) for training in asked] == ["nf-seed1"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: text.replace('"metrics"', '"metrix"', 1),
        lambda text: text.replace('"epoch": 7,', '"epoch": 6,', 1),
        lambda text: text.replace("a3_vae_template.py", "a3_gpt_template.py", 1),
        lambda text: text.replace("99.5", "NaN", 1),
        lambda text: "\n" + text,
        lambda text: "[]\n" + text,
        lambda text: text.replace("flow", "fl\xf6w", 1),
    ],
)
def test_a_damaged_line_is_named(recorded, tmp_path, damage):
    _, path = recorded
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text), encoding="latin-1")
    with pytest.raises(UserError, match=r"runs.jsonl: line \d is damaged"):
        figures("check", "--runs", tmp_path, "--recorded", path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "runs.jsonl"
    with pytest.raises(UserError, match="runs.jsonl cannot be read: No such file"):
        figures("check", "--runs", tmp_path, "--recorded", path)


def test_only_finished_runs_are_recorded(tmp_path):
    (fake_run(tmp_path / "runs" / "gan", "gan") / "result.json").unlink()
    with pytest.raises(UserError, match="only finished runs are recorded"):
        figures("export", tmp_path / "runs.jsonl", "--runs", tmp_path / "runs")
    assert not (tmp_path / "runs.jsonl").exists()
