"""Runs that stop early: what they leave, and how they go on."""

import pytest

from harness import files
from harness.errors import UserError
from tests.bare_runs import config_of, make_run, three_epochs


@pytest.fixture(autouse=True)
def script(monkeypatch):
    monkeypatch.setattr("sys.argv", ["dir/script.py"])


@pytest.mark.parametrize("early", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_run_that_ends_early_draws_its_curves_and_says_how_to_continue(tmp_path, early):
    drawn = []
    run = make_run(tmp_path / "run", lambda folder, history: drawn.append(len(history)))
    with pytest.raises(type(early)), run:
        raise early
    assert not drawn  # there was nothing to draw
    run.log(epoch=1, loss=1.0)
    with pytest.raises(type(early)) as raised, run:
        raise early
    command = f"python dir/script.py --resume {run.folder}"
    assert drawn == [1] and raised.value.__notes__[-1].endswith(f"go on with: {command}")


def test_a_stopped_evaluation_is_continued_by_an_evaluation(tmp_path):
    folder = three_epochs(tmp_path / "run").folder
    (folder / "result.json").write_text("{}")
    with pytest.raises(KeyboardInterrupt) as raised, make_run(None, evaluate=folder):
        raise KeyboardInterrupt
    assert raised.value.__notes__[-1].endswith(f"python dir/script.py --evaluate {folder}")


def test_a_damaged_result_is_an_error_before_the_evaluation_and_says_what_to_do(tmp_path):
    folder = three_epochs(tmp_path / "run").folder
    for damaged in ("{", '{"test": {"loss": NaN}}'):
        (folder / "result.json").write_text(damaged)
        with pytest.raises(UserError, match=f"delete it, then --resume {folder}"):
            make_run(None, evaluate=folder)


def test_a_second_signal_at_the_end_neither_keeps_the_folder_nor_the_page_in_training(tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt("again")

    run = make_run(tmp_path / "run", draw_curves=interrupted)
    with pytest.raises(KeyboardInterrupt, match="again"), run:
        for epoch in run.count_to(3):
            run.log(epoch=epoch, loss=1.0)
            raise KeyboardInterrupt
    assert "Stopped at epoch 1 of 3" in (run.folder / "index.html").read_text()
    assert not files.is_locked(run.folder)


def test_a_run_that_cannot_be_opened_lets_go_of_its_folder(tmp_path):
    folder = three_epochs(tmp_path / "run").folder
    for path in folder.glob("checkpoint*.pt"):
        path.write_bytes(b"damaged")
    with pytest.raises(UserError):
        make_run(None, resume=folder)
    assert not files.is_locked(folder)


def test_a_run_belongs_to_its_script_whatever_program_calls_it(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    run = make_run(tmp_path / "run", script="script.py")
    assert config_of(run)["script"] == "script.py"
    with pytest.raises(KeyboardInterrupt) as raised, run:
        raise KeyboardInterrupt
    assert raised.value.__notes__[-1].endswith(f"python script.py --resume {run.folder}")
    make_run(None, resume=run.folder, script="script.py")


def test_curves_that_cannot_be_drawn_do_not_hide_the_error(tmp_path):
    def draw_curves(folder, history):
        raise OSError(28, "No space left on device")

    run = make_run(tmp_path / "run", draw_curves)
    run.log(epoch=1, loss=1.0)
    with pytest.raises(KeyboardInterrupt), run:
        raise KeyboardInterrupt


def test_user_errors_are_not_followed_by_the_command_to_resume(tmp_path):
    with pytest.raises(UserError) as raised, make_run(tmp_path / "run"):
        raise UserError("use another")
    assert not hasattr(raised.value, "__notes__")
