"""Numbers that somebody reports, in one file: a `metrics.jsonl`, or a CSV with a heading."""

import csv
import io
import json
from pathlib import Path

from figures.kinds import GAN, NF, VAE
from figures.runs import StoredRun, stored_run
from harness.errors import UserError
from harness.files import read_regular
from harness.records import COUNTERS, count_of, counter_of, is_number

# The keys that are expected, by script: what is counted, then what is graded.
EXPECTED = {
    VAE: ("epoch", "val_neg_elbo_nats"),
    GAN: ("batch", "g_loss", "d_loss", "d_real", "d_fake"),
    NF: ("epoch", "val_bpd_shifted"),
}


def read_reported(path: Path) -> StoredRun:
    """A run on MNIST with default settings that has the numbers in a file.

    Keys and columns may have any order.

    Empty cells of a CSV are left out, and so are columns of text.

    Raises:
        UserError: it can't be read, is damaged, or has not the keys of a script.
    """
    try:
        text = read_regular(path).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", "no text")
        raise UserError(f"{path} cannot be read: {words}") from error
    try:
        read = _of_csv if path.suffix.lower() == ".csv" else _of_json_lines
        history = [line for line in read(text) if line]
        counts = [count_of([line]) for line in history]
    except (ValueError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise UserError(f"{path}: {error}; {_expected()}") from error
    keys = {key for line in history for key in line}
    script = next((s for s, (_, mark, *_) in EXPECTED.items() if mark in keys), None)
    if script is None:
        raise UserError(f"{path}: it has {', '.join(sorted(keys)) or 'no numbers'}; {_expected()}")
    if counts != sorted(set(counts)) or len({counter_of(line) for line in history}) > 1:
        raise UserError(f"{path}: {EXPECTED[script][0]} must rise from line to line")
    return stored_run(path, {"script": script}, history, {}, finished=True)


def _expected():
    keys = "; ".join(f"{script}: {', '.join(keys)}" for script, keys in EXPECTED.items())
    return f"expected keys are {keys}"


def _of_json_lines(text):
    for n, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                content = json.loads(line)
                yield {key: _finite(value) for key, value in content.items()}
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"line {n} is no JSON object of finite numbers") from error


def _of_csv(text):
    heading = text.partition("\n")[0]
    if ";" in heading and "," not in heading:
        raise ValueError("columns must be separated by commas")
    for row in csv.DictReader(io.StringIO(text)):
        line = {}
        for key, cell in row.items():
            try:
                line[(key or "").strip()] = _finite(float(cell))
            except (ValueError, TypeError):
                continue  # an empty cell, or a text
        for counter in COUNTERS:
            if counter in line:
                if line[counter] % 1:
                    raise ValueError(f"{counter} {line[counter]} is no whole number")
                line[counter] = int(line[counter])
        yield line


def _finite(value):
    if not is_number(value):
        raise ValueError("not a finite number")
    return value
