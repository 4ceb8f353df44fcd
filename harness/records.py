"""Reading a run folder back: `config.json`, `metrics.jsonl` and `result.json`, each checked."""

import json
import math
import re
import sys
from pathlib import Path

from harness.errors import UserError

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


def read_config(folder: Path | str, program: str | None = None) -> dict:
    """`config.json` of a run: a dict with a str `script` and a dict `settings` at least.

    Its `program` is the file that trained, whose name differs from that of `script` for a copy
    that somebody changed.

    Raises:
        UserError: the folder is not a run folder, or not one of `program`.
    """
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_bytes())
        maker, settings = config["script"], config["settings"]
    except (OSError, *DAMAGE) as error:
        raise UserError(f"{folder} is not a run folder: {path} is missing or unreadable") from error
    if not isinstance(maker, str) or not isinstance(settings, dict):
        raise UserError(f"{folder} is not a run folder: {path} is not one this project wrote")
    trained_by = config.get("program", maker)
    if program is not None and trained_by != program:
        raise UserError(f"{folder} is a run of {trained_by!r}, not of {program}")
    return config


def read_metrics(folder: Path | str) -> list[dict]:
    """The lines of `metrics.jsonl`: dicts of finite numbers.

    All lines have the same one of COUNTERS, whose value rises from line to line. A truncated last
    line, which a killed run leaves behind, is dropped with a warning.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = Path(folder) / "metrics.jsonl"
    try:
        texts = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if texts.pop():  # whole lines end in a newline
        print(f"{path}: the last line is truncated, not used", file=sys.stderr)
    lines = []
    for n, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
            _check_line(line, lines)
        except DAMAGE as error:
            raise UserError(
                f"{path}: line {n} is damaged, or not one this project wrote"
            ) from error
        lines.append(line)
    return lines


def _check_line(line: dict, earlier: list[dict]) -> None:
    counter = counter_of(line)
    if earlier and (counter not in earlier[0] or line[counter] <= count_of(earlier)):
        raise ValueError("another counter, or it does not rise")
    if not all(type(value) in (int, float) and math.isfinite(value) for value in line.values()):
        raise ValueError("a value is not a finite number")


def read_results(folder: Path | str) -> dict[str, dict]:
    """The results in `result.json` beside the graded rows, by name; {} for an unfinished run.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder) / "result.json"
    way_out = f"delete it, then --resume {folder} evaluates the run again"
    try:
        content = json.loads(path.read_bytes())
        results = {
            name: values for name, values in content.items() if name not in ("graded", "finished")
        }
        finite = [math.isfinite(value) for values in results.values() for value in values.values()]
    except FileNotFoundError:
        return {}
    except (OSError, *DAMAGE) as error:
        raise UserError(f"{path} is damaged, or not one this project wrote; {way_out}") from error
    if not all(finite):
        raise UserError(f"{path} holds a value that is not finite; {way_out}")
    return results


def pictures(folder: Path | str) -> tuple[list[Path], list[Path]]:
    """(curves, sample grids) among the PNGs of a run. Curves are those with a PDF beside them."""
    paths = sorted(Path(folder).glob("*.png"))
    curves = [path for path in paths if path.with_suffix(".pdf").exists()]
    return curves, [path for path in paths if path not in curves]


def kind_and_number(picture: Path) -> tuple[str, int | None]:
    """What a picture shows, and of which epoch or batch: ("samples", 10) for samples_010.png."""
    kind, number = re.fullmatch(r"(.*?)(?:_(\d+))?", picture.stem, re.DOTALL).groups()
    return kind, number and int(number)


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


def columns(history: list[dict], *keys: str) -> list[list[float]]:
    """The values of each key, line by line."""
    return [[line[key] for line in history] for key in keys]


def points(history: list[dict], x: str, y: str) -> tuple[list, list] | None:
    """(values of x, values of y) of the lines that have y; None if no line has it."""
    measured = [line for line in history if y in line]
    return tuple(columns(measured, x, y)) if measured else None
