"""Command lines: words to settings, one line for each error, and exit statuses."""

import io
import runpy
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from datasets import DataError
from harness import cli
from harness.errors import Interrupted, UsageError, UserError
from tests.bare_runs import Config
from tests.conftest import ROOT


@dataclass(frozen=True)
class Draw:
    """Draw a picture."""

    only: str | None = None  # its name


@dataclass(frozen=True)
class Train:
    """Train a model."""

    max_seeds: int = 3  # how many


def test_a_union_of_dataclasses_has_subcommands():
    assert cli.parse(Draw | Train, ["draw", "--only", "a"], "figures") == Draw("a")
    assert cli.parse(Draw | Train, ["train", "--max_seeds", "1"], "figures") == Train(1)
    for words in ([], ["paint"], ["draw", "--max_seeds", "1"]):
        with pytest.raises(UsageError) as error:
            cli.parse(Draw | Train, words, "figures")
        assert "\n" not in str(error.value)


def test_other_defaults_take_the_place_of_the_class_s():
    parsed = cli.parse(Train, [], "figures", defaults=Train(7))
    assert parsed == Train(7)
    assert cli.parse(Train, ["--max_seeds", "2"], "figures", defaults=Train(7)) == Train(2)


def test_help_shows_groups_comments_defaults_and_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        Config.parse(["--help"])
    assert stop.value.code == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for part in (
        "usage: script.py",
        "A script that trains nothing.",
        "Example: python script.py --lr 0.1",
        "--lr FLOAT learning rate (default: 0.001)",
        "data options",
        "run options",
        "--no_graph",
        "--resume",
    ):
        assert part in words


@pytest.mark.parametrize(
    "words, message",
    [
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--lr", "nan"], "--lr must be positive, not nan"),
        (["--epochs", "1.5"], "Error parsing --epochs: invalid literal for int()"),
        (["--epochs", "9" * 30], "--epochs is too large"),
        (["--seed", "-1"], "--seed must be at least 0 and below 2^32, not -1"),
        (["--out", ""], "--out: the name of the folder is empty"),
        (["--device", "tpu"], "invalid choice 'tpu' for argument '--device'"),
        (["--lr"], "Missing value for argument '--lr'"),
        (["--new", "1"], "Unrecognized options: --new, 1"),
        (["--epoch", "1"], "Unrecognized options: --epoch, 1"),
        (["x"], "Unrecognized options: x"),
        (["--resume", "a", "--evaluate", "b"], "--resume, --evaluate: one at a time"),
        (["--quality_samples", "99"], "--quality_samples must be 0 or at least 100"),
        (["--quality_samples", "-1"], "--quality_samples must be 0 or at least 100"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error_in_one_line(words, message):
    with pytest.raises(UsageError) as error:
        Config.parse(words)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert str(error.value).endswith("(--help lists the options)")


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

    def main(config):
        raise error

    monkeypatch.setattr(sys, "argv", [program])
    with pytest.raises(SystemExit) as exit:
        cli.run(main, lambda: None)
    return exit.value.code


def test_an_error_while_parsing_ends_in_one_line_too(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script.py", "--lr", "-1"])
    with pytest.raises(SystemExit) as exit:
        cli.run(None, Config.parse)
    expected = "script.py: error: --lr must be positive, not -1.0 (--help lists the options)\n"
    assert (exit.value.code, capsys.readouterr().err) == (2, expected)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_the_message_does_not_depend_on_the_terminal_s_encoding(monkeypatch, encoding):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    for words, message in (
        (["--lr", "-1"], "--lr must be positive, not -1.0"),
        (["--epochs", "x"], "Error parsing --epochs: invalid literal for int() with base 10: 'x'"),
        (["--device", "tpu"], "invalid choice 'tpu' for argument '--device'. Expected one of "),
        (["--news"], "Unrecognized options: --news"),
    ):
        with pytest.raises(UsageError) as error:
            Config.parse(words)
        assert str(error.value).startswith(message) and "  " not in str(error.value)


def test_a_tilde_in_a_word_with_an_equals_sign_is_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert Config.parse(["--out=~/x"]).run.out == Path("/home/ada/x")


@pytest.mark.parametrize("name", ["figures", "examples/sample.py", "examples/interpolate.py"])
def test_what_is_called_without_m_finds_the_project(monkeypatch, capsys, name):
    path = ROOT / name
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.setattr(sys, "path", [str(path if path.is_dir() else path.parent), *sys.path[1:]])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(path), run_name="__main__")
    assert exit.value.code == 0 and capsys.readouterr().out.startswith("usage: python -m ")
    assert sys.path[0] == str(ROOT)


def test_main_gets_the_settings(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "--lr", "0.25"])
    seen = []
    cli.run(seen.append, Config.parse)
    assert seen[0].lr == 0.25


def test_notes_follow_the_message_and_a_package_has_its_own_name(monkeypatch, capsys):
    error = Interrupted(signal.SIGTERM)
    error.add_note("resume with: something")
    assert ended(monkeypatch, "here/figures/__main__.py", error) == 143
    assert capsys.readouterr().err == "figures: interrupted; resume with: something\n"


def test_other_runtime_errors_are_bugs_and_keep_their_traceback():
    def main(config):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        cli.run(main, lambda: None)
