"""Command lines: bounds, errors in one line, and the settings of an earlier run."""

import argparse
import json
import signal
import sys
import time
import weakref

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from datasets import DataError
from harness import cli
from harness.errors import Interrupted, UsageError, UserError
from harness.files import STOP_SIGNALS


@pytest.fixture(autouse=True)
def same_handlers(monkeypatch):
    """`run_script` handles signals from then on; the tests after these need their own way."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    handlers = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "ten", "", "nan", "inf", "9" * 400])
def test_numbers_out_of_bounds_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="whole number, at least 1"):
        cli.number(int, at_least=1)(text)
    if text != "1.5":
        with pytest.raises(argparse.ArgumentTypeError, match="number, above 0 and below 1"):
            cli.number(float, above=0, below=1)(text)


def test_numbers_within_bounds_are_converted():
    assert cli.number(int, at_least=1)("1") == 1
    assert cli.number(float, at_least=0, at_most=1)("1") == 1.0


def test_statistics_need_no_sample_or_a_hundred():
    assert [cli.none_or_hundreds(text) for text in ("0", "100")] == [0, 100]
    for text in ("99", "-1", "1e3"):
        with pytest.raises(argparse.ArgumentTypeError):
            cli.none_or_hundreds(text)


def parse_args(argv):
    """The command line of a script with two settings of its own."""
    parser = cli.ArgumentParser("A script.", prog="script.py")
    parser.add_choice("--binarize", ("static", "dynamic"), "bits")
    parser.add_training_arguments(epochs=10, batch_size=10, lr=1e-3, importance_samples=50)
    parser.add_common_arguments()
    parser.add_optional_argument("--generate", metavar="RUN", help="draw images")
    parser.add_number("--n", 100, "images to draw", at_least=1)
    return parser.parse_args(argv, out="runs/script-{binarize}-lr{lr}-seed{seed}")


@pytest.fixture
def run_folder(tmp_path):
    """A finished run of that script, with other settings than the default ones."""
    args = parse_args(["--lr", "0.1", "--no_graph", "--out", str(tmp_path)])
    config = {"script": "script.py", "arguments": vars(args)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "result.json").write_text("{}")
    return tmp_path


def test_the_folder_of_a_run_is_named_after_its_settings():
    assert parse_args([]).out == "runs/script-lr0.001-seed0"
    changed = parse_args(["--binarize", "dynamic", "--seed", "3"])
    assert changed.out == "runs/script-dynamic-lr0.001-seed3"
    assert parse_args(["--out", "mine"]).out == "mine"
    with pytest.raises(UsageError, match="--out: the name of the folder is empty"):
        parse_args(["--out", ""])


@pytest.mark.parametrize(
    "words",
    [["--epochs", "0"], ["--device", "tpu"], ["--lr"], ["--new", "1"], ["--epoch", "1"], ["x"]],
    ids=" ".join,
)
def test_a_wrong_command_line_is_a_usage_error_in_one_line(words):
    with pytest.raises(UsageError, match="--help lists the options") as error:
        parse_args(words)
    assert "\n" not in str(error.value)


def test_a_run_goes_on_with_its_own_settings(run_folder):
    args = parse_args(["--resume", str(run_folder), "--epochs", "20"])
    assert (args.lr, args.epochs, args.no_graph, args.out) == (0.1, 20, True, str(run_folder))
    assert (args.resume, args.evaluate) == (str(run_folder), None)


def test_where_a_run_goes_on_and_how_it_is_evaluated_may_differ(run_folder):
    words = ["--device", "cpu", "--importance_samples", "7", "--data_dir", "mine"]
    args = parse_args(["--evaluate", str(run_folder), *words, "--quality_samples", "100"])
    assert (args.device, args.importance_samples, args.data_dir) == ("cpu", 7, "mine")
    assert (args.lr, args.quality_samples) == (0.1, 100)
    assert (args.evaluate, args.resume) == (str(run_folder), None)


@pytest.mark.parametrize("mode", ["--resume", "--evaluate"])
def test_what_would_change_the_training_is_refused(run_folder, mode):
    for words, message in (
        (["--lr", "0.001"], "its --lr is 0.1, not 0.001"),
        (["--seed", "3"], "its --seed is 0, not 3"),
        (["--binarize", "dynamic"], "its --binarize is static, not dynamic"),
        (["--out", "elsewhere"], f"its --out is {run_folder}, not elsewhere"),
        (["--generate", "x"], "one at a time"),
    ):
        with pytest.raises(UsageError, match=message):
            parse_args([mode, str(run_folder), *words])


def test_generation_reads_few_options_and_has_one_of_its_own(run_folder):
    args = parse_args(["--generate", "x", "--n", "5", "--seed", "1", "--device", "cpu"])
    assert (args.generate, args.n, args.seed) == ("x", 5, 1)
    assert parse_args(["--generate", "x"]).n == 100
    for words in (["--n", "5"], ["--evaluate", str(run_folder), "--n", "100"]):
        with pytest.raises(UsageError, match="--n is only for --generate"):
            parse_args(words)
    for option, value in (("--lr", "0.1"), ("--out", "y"), ("--epochs", "10")):
        with pytest.raises(UsageError, match=f"--generate does not read {option}"):
            parse_args(["--generate", "x", option, value])


def test_epochs_may_grow_where_training_goes_on(run_folder):
    with pytest.raises(UsageError, match="has --epochs 10, which may only grow"):
        parse_args(["--resume", str(run_folder), "--epochs", "2"])
    for epochs in ("2", "20"):
        with pytest.raises(UsageError, match="its --epochs is 10"):
            parse_args(["--evaluate", str(run_folder), "--epochs", epochs])


def test_an_option_that_agrees_with_the_run_is_no_error(run_folder):
    words = ["--lr", "1e-1", "--epochs", "10", "--seed", "0"]
    assert parse_args(["--evaluate", str(run_folder), *words]).lr == 0.1


def test_finished_runs_are_evaluated_and_unfinished_ones_go_on(run_folder):
    with pytest.raises(UserError, match="is finished: only with more epochs can it go on"):
        parse_args(["--resume", str(run_folder)])
    (run_folder / "result.json").unlink()
    assert parse_args(["--resume", str(run_folder)]).lr == 0.1
    with pytest.raises(UserError, match="is unfinished: go on with --resume"):
        parse_args(["--evaluate", str(run_folder)])


def test_a_run_of_another_script_is_refused(run_folder):
    config = {"script": "other.py", "arguments": {}}
    (run_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is a run of 'other.py', not of script.py"):
        parse_args(["--resume", str(run_folder)])


SETTINGS = ["lr", "binarize", "seed", "device", "epochs", "out", "no_graph", "help", "resume"]
SETTINGS += ["generate", "new"]
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.lists(st.integers(), max_size=2)
)


@given(name=st.sampled_from(SETTINGS), value=VALUES)
@example(name="new", value="two\nlines")
def test_a_damaged_setting_is_an_error_or_passes_the_parser(tmp_path_factory, name, value):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    arguments = vars(parse_args([])) | {name: value}
    config = {"script": "script.py", "arguments": arguments}
    (folder / "config.json").write_text(json.dumps(config))
    try:
        args = parse_args(["--resume", str(folder)])
    except UserError as error:
        assert str(error).startswith(f"{folder / 'config.json'}: ") and "\n" not in str(error)
        return
    assert type(args.seed) is type(args.epochs) is int and type(args.lr) is float
    assert args.binarize in ("static", "dynamic") and args.epochs > 0 and args.lr > 0


OUT_OF_MEMORY = "script.py: error: out of memory: smaller settings need less\n"


@pytest.mark.parametrize(
    "error, message, status",
    [
        (UsageError("no such option"), "script.py: error: no such option\n", 2),
        (UserError("use another"), "script.py: error: use another\n", 1),
        (DataError("no file"), "script.py: error: no file\n", 1),
        (
            OSError(28, "No space left on device", "runs/x"),
            "script.py: error: runs/x: No space left on device\n",
            1,
        ),
        (MemoryError(), OUT_OF_MEMORY, 1),
        (torch.OutOfMemoryError("CUDA out of memory"), OUT_OF_MEMORY, 1),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 TB"), OUT_OF_MEMORY, 1),
        (RuntimeError("DefaultCPUAllocator: not enough memory: 1 TB"), OUT_OF_MEMORY, 1),
        (Interrupted(signal.SIGINT), "script.py: interrupted\n", 130),
        (Interrupted(signal.SIGTERM), "script.py: interrupted\n", 143),
    ],
)
def test_a_script_ends_in_one_line(monkeypatch, capsys, error, message, status):
    assert ended(monkeypatch, "folder/script.py", error) == status
    assert capsys.readouterr().err == message


def ended(monkeypatch, program, error):
    """The exit status of a script whose main raises `error`."""

    def main(args):
        raise error

    monkeypatch.setattr(sys, "argv", [program])
    with pytest.raises(SystemExit) as exit:
        cli.run_script(main, lambda: None)
    return exit.value.code


def test_notes_follow_the_message_and_a_package_has_its_own_name(monkeypatch, capsys):
    error = Interrupted(signal.SIGTERM)
    error.add_note("go on with: something")
    assert ended(monkeypatch, "here/figures/__main__.py", error) == 143
    assert capsys.readouterr().err == "figures: interrupted; go on with: something\n"


def test_other_runtime_errors_are_bugs_and_keep_their_traceback():
    def main(args):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        cli.run_script(main, lambda: None)


def test_signals_that_a_shell_ignores_stay_ignored():
    """As nohup and background jobs ask for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cli.run_script(lambda args: None, lambda: None)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    with pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_inside_a_weakref_callback_ends_the_script_too(monkeypatch):
    """Python ignores exceptions there. Matplotlib has many, so one signal in 25 was lost."""

    def main(args):
        class Thing:
            pass

        thing = Thing()
        reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGTERM))
        del thing
        for _ in range(100):
            time.sleep(0.01)
        assert reference() is None

    monkeypatch.setattr(sys, "argv", ["script.py"])
    with pytest.raises(SystemExit) as exit:
        cli.run_script(main, lambda: None)
    assert exit.value.code == 143
