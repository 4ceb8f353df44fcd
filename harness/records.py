"""Reading a run folder back: `config.json`, `metrics.jsonl` and `result.json`, each checked."""

import json
import re
import sys
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.escape import words
from harness.files import read_regular

# What foreign or damaged content raises while it is parsed and checked.
DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RecursionError,
    OverflowError,
)

COUNTERS = ("epoch", "batch")
LARGEST = 3.4e38  # of float32: no training has a larger value, and no plot can show one
TEXTS = ("program", "started", "device", "command", "git_commit")  # in `config.json`, if there


def read_config(folder: Path | str, program: str | None = None) -> dict:
    """`config.json` of a run: a dict with a str `script` and a dict `settings` at least.

    Its `program` is the file that trained, whose name differs from that of `script` for a copy
    that somebody changed.

    Raises:
        UserError: the folder is not a run folder, or not one of `program`.
    """
    path = Path(folder) / "config.json"
    try:
        config = json.loads(read_regular(path))
        maker = config["script"]
    except (OSError, *DAMAGE) as error:
        raise UserError(f"{folder} is not a run folder: {path} is missing or unreadable") from error
    try:
        check_config(config)
    except DAMAGE as error:
        raise UserError(
            f"{folder} is not a run folder: {path} is not one this project wrote ({error})"
        ) from error
    trained_by = config.get("program", maker)
    if program is not None and trained_by != program:
        hint = "" if trained_by == maker else f": only {trained_by} itself loads it"
        raise UserError(f"{folder} is a run of {trained_by!r}, not of {program}{hint}")
    return config


def check_config(config: Any) -> None:
    """Raise one of DAMAGE unless this is the content of a `config.json`, as far as it is read."""
    if not isinstance(config["script"], str) or not isinstance(config["settings"], dict):
        raise ValueError("it has no script or no settings")
    for name in TEXTS:
        if not isinstance(config.get(name), str | None):
            raise ValueError(f"its {name} is no text")


def image_shape(config: dict) -> tuple[int, int]:
    """(height, width) of a run's images, by its `config.json`; MNIST's if it does not say.

    Raises:
        UserError: what it says is damaged.
    """
    shape = config.get("image_shape", [28, 28])
    sides = shape if isinstance(shape, list) else []
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise UserError(f"config.json: image_shape is {shape!r}, not [height, width]")
    return tuple(sides)


def read_metrics(folder: Path | str) -> list[dict]:
    """The lines of `metrics.jsonl`: dicts of finite numbers.

    All lines have the same one of COUNTERS, whose value rises from line to line. A truncated last
    line, which a killed run leaves behind, is dropped with a warning.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = Path(folder) / "metrics.jsonl"
    try:
        texts = read_regular(path).split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if texts.pop():  # whole lines end in a newline
        print(words(f"{path}: the last line is truncated, not used"), file=sys.stderr)
    lines = []
    for n, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            _check_line(line, lines[:1], lines[-1] if lines else None)
        except DAMAGE as error:
            raise UserError(
                f"{path}: line {n} is damaged, or not one this project wrote"
            ) from error
        lines.append(line)
    return lines


def is_number(value: Any) -> bool:
    """Whether this is an int or float that a float32 can hold, so no NaN."""
    return type(value) in (int, float) and abs(value) <= LARGEST


def check_history(history: Any) -> None:
    """Raise one of DAMAGE unless these are lines of `metrics.jsonl`: a list of dicts."""
    if not isinstance(history, list):
        raise TypeError("metrics are not a list")
    for n, line in enumerate(history):
        _check_line(line, history[:1], history[n - 1] if n else None)


def _check_line(line: Any, first: list[dict], before: dict | None) -> None:
    counter = counter_of(line)
    if type(line[counter]) is not int:
        raise ValueError("the counter is no whole number")
    if before is not None and (counter not in first[0] or line[counter] <= count_of([before])):
        raise ValueError("another counter, or it does not rise")
    if not all(isinstance(key, str) and is_number(value) for key, value in line.items()):
        raise ValueError("a value is not a finite number")


def check_results(results: Any) -> None:
    """Raise one of DAMAGE unless these are dicts of finite numbers, by name."""
    for name, values in results.items():
        if not isinstance(name, str) or not all(isinstance(key, str) for key in values):
            raise ValueError("a name is no text")
        if not all(map(is_number, values.values())):
            raise ValueError("a value is not a finite number")


def read_results(folder: Path | str) -> dict[str, dict]:
    """The results in `result.json` beside the graded rows, by name; {} for an unfinished run.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder) / "result.json"
    way_out = f"delete it, then --resume {folder} evaluates the run again"
    try:
        content = json.loads(read_regular(path))
        results = {
            name: values for name, values in content.items() if name not in ("graded", "finished")
        }
        check_results(results)
    except FileNotFoundError:
        return {}
    except (OSError, *DAMAGE) as error:
        raise UserError(f"{path} is damaged, or not one this project wrote; {way_out}") from error
    return results


def pictures(folder: Path | str) -> tuple[list[Path], list[Path]]:
    """(curves, sample grids) among the PNGs of a run. Curves are those with a PDF beside them."""
    paths = sorted(Path(folder).glob("*.png"))
    curves = [path for path in paths if path.with_suffix(".pdf").exists()]
    return curves, [path for path in paths if path not in curves]


def kind_and_number(picture: Path) -> tuple[str, int | None]:
    """What a picture shows, and of which epoch or batch: ("samples", 10) for samples_010.png."""
    kind, number = re.fullmatch(r"(.*?)(?:_(\d+))?", picture.stem, re.DOTALL).groups()
    return kind, int(number) if number else None


def numbered(folder: Path, kind: str, suffix: str) -> dict[int, Path]:
    """The files KIND_NUMBER.SUFFIX of a run folder by number; "samples_001 (copy).png" is none."""
    named = ((kind_and_number(path), path) for path in folder.glob(f"{kind}_*{suffix}"))
    return {
        number: path for (of_kind, number), path in named if of_kind == kind and number is not None
    }


def counter_of(line: dict) -> str:
    """What a line of metrics counts, one of COUNTERS.

    Raises:
        ValueError: none of them.
    """
    for counter in COUNTERS:
        if counter in line:
            return counter
    raise ValueError(f"a line of metrics needs one of: {', '.join(COUNTERS)}")


def count_of(history: list[dict]) -> int:
    """Epochs or batches done, by the last line; 0 without lines."""
    return history[-1][counter_of(history[-1])] if history else 0
