"""A run: its folder, its loop, its checkpoints, and its results."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from harness import files, records
from harness import run as run_module
from harness.errors import UserError
from tests.bare_runs import config_of, make_run, three_epochs


@pytest.fixture(autouse=True)
def script(monkeypatch):
    monkeypatch.setattr("sys.argv", ["dir/script.py"])


def test_a_run_folder_is_never_written_over(tmp_path):
    made = [make_run(tmp_path / "a" / "run") for _ in range(3)]
    assert [run.folder.name for run in made] == ["run", "run-2", "run-3"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    assert make_run(tmp_path / "notes").folder.name == "notes-2"
    (tmp_path / "empty").mkdir()
    assert make_run(tmp_path / "empty").folder.name == "empty"


def test_runs_started_together_get_a_folder_each(tmp_path, monkeypatch):
    with ThreadPoolExecutor(8) as pool:
        claim = run_module._claim_folder
        folders = list(pool.map(lambda _: claim(tmp_path / "run"), range(24)))
    assert len(set(folders)) == 24
    # The worst moment: each run sees an empty folder, as the others have not written to it yet.
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(()))
    names = [claim(tmp_path / "race").name for _ in range(3)]
    assert names == ["race", "race-2", "race-3"]


def test_a_folder_without_a_name_of_its_own_gets_one_beside_it(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    monkeypatch.chdir(tmp_path / "mine")
    assert make_run(".").folder == tmp_path / "mine-2"
    (tmp_path / "mine" / "deeper").mkdir()
    monkeypatch.chdir("deeper")
    assert make_run("..").folder == tmp_path / "mine-3"


def test_an_impossible_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run cannot be made"):
        make_run(tmp_path / "file" / "run")


@pytest.mark.skipif(files.fcntl is None, reason="needs locks on folders")
def test_a_run_is_trained_by_one_process_at_a_time(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match="is being trained by another process"):
        make_run(None, resume=run.folder)


def test_the_config_records_what_made_the_run(tmp_path):
    config = config_of(make_run(tmp_path / "run", lr=0.1))
    assert config["script"] == "script.py" and config["command"] == "python dir/script.py"
    fixed = {"tensorboard": False, "out": str(tmp_path / "run"), "device": "cpu"}
    assert config["arguments"] == fixed | {"lr": 0.1}
    assert config["versions"]["torch"] == torch.__version__
    assert {"git_commit", "device", "started"} <= config.keys()


def test_metrics_are_appended_and_must_be_finite(tmp_path):
    run = make_run(tmp_path / "run")
    lines = [{"epoch": 1, "loss": 2.5}, {"epoch": 2, "loss": 1.5}]
    for line in lines:
        run.log(**line)
    for bad in (math.nan, math.inf):
        with pytest.raises(UserError, match="loss is not finite at epoch 3"):
            run.log(epoch=3, loss=bad)
    written = records.read_metrics(run.folder)
    assert written == run.history and run.count == 2
    assert [line | {"seconds": 0} for line in lines] == [line | {"seconds": 0} for line in written]


def test_seconds_are_those_since_the_last_line(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(run_module.time, "perf_counter", lambda: clock[0])
    run = make_run(tmp_path / "run")
    clock[0] += 50  # getting ready
    for epoch in run.count_to(6):
        clock[0] += epoch
        if epoch % 2 == 0:
            run.log(epoch=epoch, loss=0.0)
            clock[0] += 7  # pictures, say
    assert [line["seconds"] for line in run.history] == [1 + 2, 3 + 4, 5 + 6]


def test_the_loop_counts_what_is_left_to_do_and_ends_with_a_checkpoint_and_curves(tmp_path):
    drawn = []
    run = make_run(tmp_path / "run", lambda folder, history: drawn.append((folder, len(history))))
    for epoch in run.count_to(3):
        assert not drawn
        run.log(epoch=epoch, loss=1.0)
    assert drawn == [(run.folder, 3)]
    checkpoint = torch.load(run.folder / "checkpoint.pt", weights_only=True)
    assert len(checkpoint["metrics"]) == 3
    run.close()
    resumed = make_run(None, resume=run.folder)
    assert resumed.count == 3 and list(resumed.count_to(5)) == [4, 5]


def test_a_checkpoint_is_written_only_after_a_line(tmp_path, monkeypatch):
    """Between two lines a checkpoint would lose the sums that the next line averages."""
    run, saved = make_run(tmp_path / "run"), []
    monkeypatch.setattr(run, "save_checkpoint", lambda last: saved.append((run.count, last)))
    for batch in run.count_to(7):
        if batch in (3, 6, 7):
            run.log(batch=batch, loss=1.0)
    assert saved == [(3, False), (6, False), (7, True)]


def test_batches_of_an_epoch_move_the_bar_and_are_left_as_they_are(tmp_path):
    run, batches = make_run(tmp_path / "run"), [torch.full((2,), n) for n in range(4)]
    for epoch in run.count_to(2):
        seen = []
        for n, batch in enumerate(run.counted(batches)):
            assert run._bar.n == pytest.approx(epoch - 1 + n / 4)
            seen.append(batch)
        assert all(one is other for one, other in zip(seen, batches, strict=True))
    assert run._bar.n == pytest.approx(2)


def test_checkpoints_cost_about_two_percent(tmp_path, monkeypatch):
    clock = [0.0]

    def slow_fsync(_):
        clock[0] += 2.0

    monkeypatch.setattr(run_module.time, "perf_counter", lambda: clock[0])
    run, spent = make_run(tmp_path / "run"), 0.0
    monkeypatch.setattr(files.os, "fsync", slow_fsync)
    for _ in range(1000):
        clock[0] += 1.0
        before = clock[0]
        run.save_checkpoint(last=False)
        spent += clock[0] - before
    assert 0.01 < spent / clock[0] <= 0.025


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("bug")])
def test_a_checkpoint_is_whole_or_not_written(tmp_path, monkeypatch, error):
    run = make_run(tmp_path / "run", parts={"model": torch.nn.Linear(3, 2)})
    run.log(epoch=1, loss=1.0)
    run.save_checkpoint(last=True)
    before = {path: path.read_bytes() for path in run.folder.iterdir()}

    def fail_halfway(state, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", fail_halfway)
    with pytest.raises(type(error)) as raised:
        run.save_checkpoint(last=True)
    if isinstance(error, OSError):
        assert raised.value.filename == str(run.folder / "checkpoint.pt")
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == before


def test_resuming_cuts_the_metrics_back_to_the_checkpoint(tmp_path):
    folder = three_epochs(tmp_path / "run").folder
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "loss": 0.25}\n{"epoch": 5, "lo')
    for name in ("result.json", "model.safetensors"):
        (folder / name).write_text("{}")
    model = torch.nn.Linear(1, 1)
    run = make_run(None, resume=folder, parts={"model": model}, lr=0.1)
    assert model.weight.item() == 3 and [line["epoch"] for line in run.history] == [1, 2, 3]
    assert records.read_metrics(folder) == run.history
    for name in ("result.json", "model.safetensors"):  # the run is no longer finished
        assert not (folder / name).exists()
    assert [start["from"] for start in config_of(run)["resumed"]] == [3]
    run.close()
    again = config_of(make_run(None, resume=folder, parts={"model": model}, lr=0.1))
    assert [start["from"] for start in again["resumed"]] == [3, 3]
    fixed = {"tensorboard": False, "out": str(folder), "device": "cpu"}
    assert again["arguments"] == fixed | {"lr": 0.1}


def test_resuming_restores_the_random_numbers(tmp_path):
    torch.manual_seed(0)
    run = three_epochs(tmp_path / "run")
    expected = torch.rand(3)
    torch.manual_seed(1)
    make_run(None, resume=run.folder, parts={"model": torch.nn.Linear(1, 1)})
    assert torch.equal(torch.rand(3), expected)


def test_evaluating_trains_nothing_and_changes_only_what_follows_from_it(tmp_path):
    folder = three_epochs(tmp_path / "run").folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model, drawn = torch.nn.Linear(1, 1), []
    run = make_run(None, drawn.append, {"model": model}, evaluate=folder)
    assert model.weight.item() == 3 and list(run.count_to(5)) == [] and not drawn
    run.finish({"test": {"loss": 1.0}}, model)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.pop("result.json") and after.pop("model.safetensors")
    assert after.pop("index.html") != before.pop("index.html") and after == before


def test_a_finished_run_s_damaged_checkpoint_is_not_replaced_by_the_one_before(tmp_path):
    folder = three_epochs(tmp_path / "run").folder
    (folder / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(UserError, match="no usable checkpoint"):
        make_run(None, evaluate=folder)


def test_the_result_holds_graded_rows_and_results(tmp_path, capsys):
    row = {"quantity": "loss", "unit": "nats", "at": 1, "value": 1.0, "reference": 2.0}
    row["verdict"] = "pass"
    seen = []
    run = make_run(tmp_path / "run", grade=lambda *given: seen.append(given) or [row])
    run.log(epoch=1, loss=1.0)
    files.write_json(run.folder / "result.json", {"earlier": {"a": 1.0}, "test": {"loss": 2.0}})
    run.finish({"test": {"loss": 1.5}}, torch.nn.Linear(1, 1))
    results = {"earlier": {"a": 1.0}, "test": {"loss": 1.5}}
    assert seen[0] == (run._args, run.history, results)
    content = json.loads((run.folder / "result.json").read_text())
    assert content["graded"] == [row] and content["finished"]
    assert records.read_results(run.folder) == results
    printed = capsys.readouterr().out
    assert "loss      nats" in printed and "\ntest: loss 1.5" in printed
    assert "\nearlier (of an earlier evaluation): a 1" in printed
    assert printed.endswith(f"run folder: {run.folder}\n")


def test_an_old_run_without_random_states_is_refused_in_one_line(tmp_path):
    folder = three_epochs(tmp_path / "run").folder
    for name in ("checkpoint.pt", "checkpoint_previous.pt"):
        checkpoint = torch.load(folder / name, weights_only=True)
        del checkpoint["random"]
        torch.save(checkpoint, folder / name)
    with pytest.raises(UserError, match="no usable checkpoint"):
        make_run(None, resume=folder, parts={"model": torch.nn.Linear(1, 1)})


def test_a_result_that_is_not_finite_is_refused_and_the_run_can_be_evaluated_again(tmp_path):
    run = make_run(tmp_path / "run", grade=lambda *given: [])
    run.log(epoch=1, loss=1.0)
    with pytest.raises(UserError, match="test: loss is not finite"):
        run.finish({"test": {"loss": math.nan}}, torch.nn.Linear(1, 1))
    assert not (run.folder / "result.json").exists()


@pytest.mark.skipif(files.fcntl is None, reason="needs locks on folders")
def test_a_run_in_training_is_not_evaluated(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match="is being trained by another process"):
        make_run(None, evaluate=run.folder)
