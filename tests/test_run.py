"""A run: its folder, its loop, its checkpoints, and its results."""

import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from datasets import Batches
from harness import Run, files, records, references, steps
from harness import run as run_module
from harness.errors import UserError
from tests.bare_runs import CURVES, Config, config_for, config_of, make_run, three_epochs


@pytest.fixture(autouse=True)
def script(monkeypatch):
    monkeypatch.setattr("sys.argv", ["dir/script.py"])
    monkeypatch.setattr(run_module, "_oversubscribed", lambda: False)


def test_a_run_folder_is_never_written_over(tmp_path):
    made = [make_run(tmp_path / "a" / "run") for _ in range(3)]
    assert [run.folder.name for run in made] == ["run", "run-2", "run-3"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    assert make_run(tmp_path / "notes").folder.name == "notes-2"
    (tmp_path / "empty").mkdir()
    assert make_run(tmp_path / "empty").folder.name == "empty"


def test_a_run_without_a_folder_of_its_own_is_named_after_its_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert make_run(lr=0.5).folder == Path("runs/script-lr0.5")
    assert make_run(lr=0.5).folder == Path("runs/script-lr0.5-2")


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
    assert run_module._claim_folder(Path(".")) == tmp_path / "mine-2"
    (tmp_path / "mine" / "deeper").mkdir()
    monkeypatch.chdir("deeper")
    assert make_run(Path("..")).folder == tmp_path / "mine-3"


def test_an_impossible_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/run cannot be made"):
        make_run(tmp_path / "file" / "run")


@pytest.mark.skipif(files.fcntl is None, reason="needs locks on folders")
def test_a_run_is_trained_by_one_process_at_a_time(tmp_path):
    run = make_run(tmp_path / "run")
    for mode in ("resume", "evaluate"):
        with pytest.raises(UserError, match="is being trained by another process"):
            make_run(**{mode: run.folder})
    run.close()
    make_run(resume=run.folder)


def test_the_config_records_what_made_the_run(tmp_path):
    config = config_of(make_run(tmp_path / "run", lr=0.1))
    assert config["script"] == "script.py" and config["command"] == "python dir/script.py"
    settings = Config().flat() | {"lr": 0.1, "out": str(tmp_path / "run"), "device": "cpu"}
    assert config["settings"] == settings
    assert config["versions"]["torch"] == torch.__version__
    assert {"git_commit", "device", "started"} <= config.keys()


def test_a_run_sets_the_seed_and_whether_steps_are_captured():
    for graph in (False, True):
        config = config_for()
        config.run = type(config.run)(device="cpu", seed=7, graph=graph)
        Run(config, CURVES)
        assert steps.use_graphs == graph
        drawn = torch.rand(3)
        torch.manual_seed(7)
        assert torch.equal(torch.rand(3), drawn)


def start(run, total=9):
    """Begin the loop, so that lines can be logged."""
    epochs = run.remaining(total)
    next(epochs)
    return epochs


def test_metrics_are_appended_and_must_be_finite(tmp_path):
    run = make_run(tmp_path / "run")
    loop = start(run)
    lines = [{"epoch": 1, "loss": 2.5}, {"epoch": 2, "loss": 1.5}]
    for line in lines:
        run.log(**line)
    for bad in (math.nan, math.inf):
        with pytest.raises(UserError, match="loss is not finite at epoch 3"):
            run.log(epoch=3, loss=bad)
    written = records.read_metrics(run.folder)
    assert written == run.history and run.count == 2
    assert [line | {"seconds": 0} for line in lines] == [line | {"seconds": 0} for line in written]
    with pytest.raises(ValueError, match="a line of metrics needs one of: epoch, batch"):
        run.log(loss=1.0)
    loop.close()


def test_the_order_of_the_metrics_does_not_matter(tmp_path):
    run = make_run(tmp_path / "run")
    loop = start(run)
    run.log(loss=2.5, epoch=1)
    assert run.count == 1 and list(run.history[0]) == ["loss", "epoch", "seconds"]
    loop.close()


def test_seconds_are_those_of_training_since_the_last_line(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(run_module.time, "perf_counter", lambda: clock[0])
    run = make_run(tmp_path / "run")
    clock[0] += 50  # getting ready
    for epoch in run.remaining(6):
        clock[0] += epoch
        if epoch % 2 == 0:
            run.log(epoch=epoch, loss=0.0)
            clock[0] += 7  # pictures, say
            run.checkpoint()
    assert [line["seconds"] for line in run.history] == [1 + 2, 3 + 4, 5 + 6]


def test_seconds_count_from_line_to_line_without_checkpoints_too(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(run_module.time, "perf_counter", lambda: clock[0])
    run = make_run(tmp_path / "run")
    for epoch in run.remaining(3):
        clock[0] += epoch
        run.log(epoch=epoch, loss=0.0)
    assert [line["seconds"] for line in run.history] == [1, 2, 3]


def test_the_loop_counts_what_is_left_and_the_last_checkpoint_is_always_written(tmp_path):
    run = make_run(tmp_path / "run")
    for epoch in run.remaining(3):
        assert not (run.folder / "loss.pdf").exists()
        run.log(epoch=epoch, loss=1.0)
        run.checkpoint()
    assert (run.folder / "loss.pdf").exists()
    checkpoint = torch.load(run.folder / "checkpoint.pt", weights_only=True)
    assert len(checkpoint["metrics"]) == 3
    run.close()
    resumed = make_run(resume=run.folder)
    assert resumed.count == 3 and list(resumed.remaining(5)) == [4, 5]


def test_the_loop_itself_writes_nothing(tmp_path):
    run = make_run(tmp_path / "run")
    loop = run.remaining(3)
    next(loop)
    before = {path: path.read_bytes() for path in run.folder.iterdir()}
    assert list(loop) == [2, 3]
    assert {path: path.read_bytes() for path in run.folder.iterdir()} == before


def test_batches_of_an_epoch_move_the_bar_and_are_left_as_they_are(tmp_path):
    run, batches = make_run(tmp_path / "run"), [torch.full((2,), n) for n in range(4)]
    for epoch in run.remaining(2):
        seen = []
        for n, batch in enumerate(run.progress(batches)):
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
    for epoch in run.remaining(1001):
        clock[0] += 1.0
        run.history.append({"epoch": epoch})
        before = clock[0]
        if epoch <= 1000:
            run.checkpoint()
        spent += clock[0] - before
    assert 0.01 < spent / clock[0] <= 0.025


def test_resuming_cuts_the_metrics_back_to_the_checkpoint(tmp_path):
    folder = three_epochs(tmp_path / "run").folder
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "loss": 0.25}\n{"epoch": 5, "lo')
    for name in ("result.json", "model.safetensors"):
        (folder / name).write_text("{}")
    model = torch.nn.Linear(1, 1)
    run = make_run(resume=folder, parts={"model": model}, epochs=20)
    assert model.weight.item() == 3 and [line["epoch"] for line in run.history] == [1, 2, 3]
    assert records.read_metrics(folder) == run.history
    for name in ("result.json", "model.safetensors"):  # the run is no longer finished
        assert not (folder / name).exists()
    assert [start["from"] for start in config_of(run)["resumed"]] == [3]
    run.close()
    again = config_of(make_run(resume=folder, parts={"model": model}, epochs=30))
    assert [start["from"] for start in again["resumed"]] == [3, 3]
    assert again["settings"]["epochs"] == 30 and again["settings"]["out"] == str(folder)
    assert again["started"] == config_of(run)["started"]


def test_resuming_restores_the_random_numbers(tmp_path):
    torch.manual_seed(0)
    run = three_epochs(tmp_path / "run")
    expected = torch.rand(3)
    torch.manual_seed(1)
    make_run(resume=run.folder, parts={"model": torch.nn.Linear(1, 1)})
    assert torch.equal(torch.rand(3), expected)


def test_evaluating_trains_nothing_and_changes_only_what_follows_from_it(tmp_path):
    folder = three_epochs(tmp_path / "run").folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = torch.nn.Linear(1, 1)
    run = make_run(evaluate=folder, parts={"model": model})
    assert model.weight.item() == 3 and list(run.remaining(5)) == []
    run.finish({"test": {"loss": 1.0}}, model)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert after.pop("result.json") and after.pop("model.safetensors")
    assert after.pop("index.html") != before.pop("index.html") and after == before


@pytest.mark.parametrize("mode", ["resume", "evaluate"])
def test_a_script_that_has_changed_is_named(tmp_path, capsys, monkeypatch, mode):
    folder = three_epochs(tmp_path / "run").folder
    parts = {"model": torch.nn.Linear(1, 1)}
    make_run(**{mode: folder}, parts=parts).close()
    assert "has changed" not in capsys.readouterr().err
    monkeypatch.setattr(Config, "checksum", classmethod(lambda cls: "another"))
    make_run(**{mode: folder}, parts=parts)
    assert f"has changed since {folder} was started" in capsys.readouterr().err


def test_a_finished_run_s_damaged_checkpoint_is_not_replaced_by_the_one_before(tmp_path):
    folder = three_epochs(tmp_path / "run").folder
    (folder / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(UserError, match="no usable checkpoint"):
        make_run(evaluate=folder)


ROW = {"quantity": "loss", "unit": "nats", "key": "test.loss", "at": "end", "value": 2.0}
ROW |= {"kind": "bar", "source": "someone", "high": 2.0}


def test_the_result_holds_graded_rows_and_results(tmp_path, capsys, monkeypatch):
    table = {"script": "script.py", "standard": {"settings": Config().flat(), "rows": [ROW]}}
    harmless = ["out", "device"]
    monkeypatch.setattr(references, "load", lambda: {"harmless": harmless, "one": table})
    run = make_run(tmp_path / "run")
    start(run)
    run.log(epoch=1, loss=1.0)
    files.write_json(run.folder / "result.json", {"earlier": {"a": 1.0}, "test": {"loss": 3.0}})
    run.finish({"test": {"loss": 1.5}}, torch.nn.Linear(1, 1))
    content = json.loads((run.folder / "result.json").read_text())
    (graded,) = content["graded"]
    assert graded == {
        "quantity": "loss",
        "unit": "nats",
        "at": 1,
        "value": 1.5,
        "reference": 2.0,
        "source": "someone",
        "verdict": "pass",
    }
    assert content["finished"]
    assert records.read_results(run.folder) == {"earlier": {"a": 1.0}, "test": {"loss": 1.5}}
    printed = capsys.readouterr().out
    assert "loss      nats" in printed and "\ntest: loss 1.5" in printed
    assert "\nearlier (of an earlier evaluation): a 1" in printed
    assert printed.endswith(f"run folder: {run.folder}\n")


def test_a_script_of_one_s_own_is_finished_without_a_table(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    start(run)
    run.log(epoch=1, loss=1.0)
    run.finish({"test": {"loss": 1.5}}, torch.nn.Linear(1, 1))
    assert capsys.readouterr().out == f"test: loss 1.5\nrun folder: {run.folder}\n"
    assert json.loads((run.folder / "result.json").read_text())["graded"] == []


def test_a_checkpoint_without_random_states_is_refused_in_one_line(tmp_path):
    folder = three_epochs(tmp_path / "run").folder
    for name in ("checkpoint.pt", "checkpoint_previous.pt"):
        checkpoint = torch.load(folder / name, weights_only=True)
        del checkpoint["random"]
        torch.save(checkpoint, folder / name)
    with pytest.raises(UserError, match="no usable checkpoint"):
        make_run(resume=folder, parts={"model": torch.nn.Linear(1, 1)})


def test_a_result_that_is_not_finite_is_refused_and_the_run_can_be_evaluated_again(tmp_path):
    run = make_run(tmp_path / "run")
    start(run)
    run.log(epoch=1, loss=1.0)
    with pytest.raises(UserError, match="test: loss is not finite"):
        run.finish({"test": {"loss": math.nan}}, torch.nn.Linear(1, 1))
    assert not (run.folder / "result.json").exists()


def test_many_dead_units_are_said_once(tmp_path, capsys):
    for n_dead, n_images, shown in ((2, 1500, None), (3, 1500, "1,000"), (3, 66, "66")):
        data = Batches(torch.ones(n_images, 3, dtype=torch.uint8), 100, torch.Tensor.float)
        layer = torch.nn.Linear(3, 4)
        torch.nn.init.constant_(layer.weight, 1.0)
        with torch.no_grad():
            layer.weight[:n_dead] = -5.0
        run = make_run(tmp_path / "run")
        for _ in range(2):
            assert run.dead_units(layer, [layer], data) == n_dead / 4
        said = capsys.readouterr().err
        assert said.count("75% of the units of a hidden layer are dead") == (shown is not None)
        assert shown is None or f": none of {shown} images makes them fire" in said
        run.close()


def test_an_oversubscribed_cpu_is_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for load, expected in (((6.1, 0, 0), 1), ((5.9, 0, 0), 0)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: load)
        run = make_run(tmp_path / "run")
        for epoch in run.remaining(2):
            run.log(epoch=epoch, loss=1.0)
        words = capsys.readouterr().err
        assert words.count("the CPU is oversubscribed: set OMP_NUM_THREADS=1") == expected
