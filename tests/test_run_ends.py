"""Runs that stop early: what they leave, and how they go on."""

import signal
import weakref

import pytest
import torch

from harness import Run, checkpoints, cli, files, interrupts, live
from harness import run as run_module
from harness.errors import Interrupted, UserError
from tests.bare_runs import CURVES, config_for, config_of, make_run, three_epochs


@pytest.fixture(autouse=True)
def script(monkeypatch):
    monkeypatch.setattr("sys.argv", ["dir/script.py"])
    monkeypatch.setattr(run_module, "_oversubscribed", lambda: False)


def stop_after(run, error, n_epochs=1):
    """Train, and raise the error in the epoch after `n_epochs`."""
    with run:
        for epoch in run.remaining(n_epochs + 3):
            if epoch > n_epochs:
                raise error
            run.log(epoch=epoch, loss=1.0)
            run.checkpoint()


@pytest.mark.parametrize("early", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_run_that_ends_early_draws_its_curves_and_says_how_to_continue(
    tmp_path, monkeypatch, early
):
    monkeypatch.setattr(live, "CURVES_SECONDS", 1e9)
    for n, n_epochs in enumerate((0, 1)):
        run = make_run(tmp_path / f"run{n}")
        with pytest.raises(type(early)) as raised:
            stop_after(run, early, n_epochs)
        assert (run.folder / "loss.pdf").exists() == (n_epochs > 0)  # before there is nothing
        command = f"python dir/script.py --resume {run.folder}"
        assert raised.value.__notes__[-1].endswith(f"resume with: {command}")


def test_a_stopped_evaluation_is_continued_by_an_evaluation_and_changes_nothing(tmp_path):
    folder = three_epochs(tmp_path / "run").folder
    (folder / "result.json").write_text("{}")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(KeyboardInterrupt) as raised, make_run(evaluate=folder):
        raise KeyboardInterrupt
    assert raised.value.__notes__[-1].endswith(f"python dir/script.py --evaluate {folder}")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_damaged_result_is_an_error_before_the_evaluation_and_says_what_to_do(tmp_path):
    folder = three_epochs(tmp_path / "run").folder
    for damaged in ("{", '{"test": {"loss": NaN}}'):
        (folder / "result.json").write_text(damaged)
        with pytest.raises(UserError, match=f"delete it, then --resume {folder}"):
            make_run(evaluate=folder)


def test_a_second_signal_at_the_end_neither_keeps_the_folder_nor_the_page_in_training(
    tmp_path, monkeypatch
):
    def interrupted(*_):
        raise KeyboardInterrupt("again")

    run = make_run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt, match="again"), run:
        for epoch in run.remaining(3):
            run.log(epoch=epoch, loss=1.0)
            monkeypatch.setattr(run._page, "draw_curves", interrupted)
            raise KeyboardInterrupt
    assert "Stopped at epoch 1 of 3" in (run.folder / "index.html").read_text()
    assert not files.is_locked(run.folder)


def test_a_run_that_cannot_be_restored_lets_go_of_its_folder(tmp_path):
    folder = three_epochs(tmp_path / "run").folder
    for path in folder.glob("checkpoint*.pt"):
        path.write_bytes(b"damaged")
    with pytest.raises(UserError):
        make_run(resume=folder)
    assert not files.is_locked(folder)


def test_a_run_belongs_to_its_script_whatever_program_calls_it(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    run = make_run(tmp_path / "run")
    assert config_of(run)["script"] == "script.py"
    with pytest.raises(KeyboardInterrupt) as raised:
        stop_after(run, KeyboardInterrupt())
    assert raised.value.__notes__[-1].endswith(f"python script.py --resume {run.folder}")
    make_run(resume=run.folder)


def test_curves_that_cannot_be_drawn_do_not_hide_the_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(live, "draw_curves", full)
    with pytest.raises(KeyboardInterrupt):
        stop_after(make_run(tmp_path / "run"), KeyboardInterrupt())


def test_user_errors_are_not_followed_by_the_command_to_resume(tmp_path):
    with pytest.raises(UserError) as raised, make_run(tmp_path / "run"):
        raise UserError("use another")
    assert not hasattr(raised.value, "__notes__")


@pytest.mark.parametrize("loop", ["epochs", "batches"])
def test_a_signal_that_arrives_in_a_weakref_callback_still_stops_the_run(
    tmp_path, loop, monkeypatch
):
    """Python ignores what is raised there. Matplotlib has many, so one signal in 25 was lost."""
    monkeypatch.setattr("sys.unraisablehook", lambda ignored: None)
    interrupts.raise_interrupted()

    class Thing:
        pass

    def receive():
        thing = Thing()
        reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
        del thing
        assert reference() is None

    run, seen = make_run(tmp_path / "run"), []
    with pytest.raises(Interrupted) as raised, run:
        for epoch in run.remaining(5):
            run.log(epoch=epoch, loss=1.0)
            run.checkpoint()
            for batch in run.progress(range(4)) if loop == "batches" else ():
                seen.append(batch)
                if (epoch, batch) == (2, 1):
                    receive()
            if epoch == 2 and loop == "epochs":
                receive()
    assert raised.value.signum == signal.SIGTERM and run.count == 2
    assert seen == ([0, 1, 2, 3, 0, 1] if loop == "batches" else [])
    assert "--resume" in raised.value.__notes__[-1]


def noisy_training(run, until=None):
    """Six epochs with a schedule; stops before the epoch `until`. Returns (metrics, weights)."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    with run:
        run.start_or_resume(model=model, optimizer=optimizer, schedule=schedule)
        for epoch in run.remaining(6):
            if epoch == until:
                raise KeyboardInterrupt
            loss = (model(torch.rand(8, 3)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            run.log(epoch=epoch, loss=loss.item(), lr=optimizer.param_groups[0]["lr"])
            run.checkpoint()
    return [line | {"seconds": 0} for line in run.history], model.state_dict()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_schedule_goes_on_to_the_last_bit_where_a_run_was_stopped(tmp_path, monkeypatch, lost):
    monkeypatch.setattr(run_module, "CHECKPOINT_COST", 1e9)  # after every epoch
    expected, weights = noisy_training(Run(config_for(tmp_path / "long"), CURVES))
    with pytest.raises(KeyboardInterrupt):
        noisy_training(Run(config_for(tmp_path / "short"), CURVES), until=4)
    if lost:  # killed while it wrote the newest checkpoint
        (tmp_path / "short" / checkpoints.NEWEST).write_bytes(b"")
    torch.manual_seed(99)
    found, resumed = noisy_training(Run(config_for(resume=tmp_path / "short"), CURVES))
    assert found == expected and expected[-1]["lr"] == 0
    assert all(torch.equal(value, resumed[name]) for name, value in weights.items())


def test_two_signals_at_once_still_leave_the_command_that_resumes(tmp_path, capsys):
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def main(_):
        run = make_run(tmp_path / "run")
        close = run.close

        def close_with_signal():
            signal.raise_signal(signal.SIGINT)
            close()

        run.close = close_with_signal
        with run:
            for epoch in run.remaining(3):
                run.log(epoch=epoch, loss=1.0)
                signal.raise_signal(signal.SIGINT)

    for patience in (interrupts.PATIENCE, 0):  # the second comes at once, or after a while
        interrupts.PATIENCE, before = patience, interrupts.PATIENCE
        try:
            with pytest.raises(SystemExit) as stop:
                cli.run(main, lambda: None)
        finally:
            interrupts.PATIENCE = before
        assert stop.value.code == 130
        assert f"resume with: python dir/script.py --resume {tmp_path}" in capsys.readouterr().err
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def killed_at(monkeypatch, module, name):
    """Make a function of a module end the process, as SIGKILL would."""

    class Killed(BaseException):
        pass

    def die(*_, **__):
        raise Killed

    monkeypatch.setattr(module, name, die)
    return Killed


def test_a_kill_before_the_result_leaves_no_page_that_reloads(tmp_path, monkeypatch):
    run = three_epochs(tmp_path / "run")
    killed = killed_at(monkeypatch, files, "write_json")
    with pytest.raises(killed):
        run.finish({}, torch.nn.Linear(1, 1))
    assert "http-equiv" not in (run.folder / live.FILE).read_text()


def test_a_kill_while_a_longer_run_resumes_leaves_no_short_run_that_is_finished(
    tmp_path, monkeypatch
):
    folder = three_epochs(tmp_path / "run").folder
    (folder / "result.json").write_text("{}")
    killed = killed_at(monkeypatch, files, "write_json")  # of config.json, with more epochs
    with pytest.raises(killed):
        make_run(resume=folder, epochs=20, parts={"model": torch.nn.Linear(1, 1)})
    assert not (folder / "result.json").exists()


def test_a_folder_that_is_read_only_is_found_out_before_the_evaluation(tmp_path, monkeypatch):
    folder = three_epochs(tmp_path / "run").folder
    (folder / "result.json").write_text("{}")

    def read_only(dir):
        raise OSError(30, "Read-only file system", f"{dir}/tmp1234")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    for mode in ("evaluate", "resume"):
        with pytest.raises(OSError, match="Read-only") as raised:
            make_run(**{mode: folder})
        assert raised.value.filename == str(folder) and (folder / "result.json").exists()


def test_a_run_computes_in_float32_and_leaves_the_default_as_it_was(tmp_path):
    torch.set_default_dtype(torch.float64)
    try:
        with make_run(tmp_path / "run"):
            assert torch.zeros(1).dtype == torch.float32
        assert torch.zeros(1).dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
