"""Numbers of README.md and of the scripts' docstrings that no result file supports.

    python -m tests.readme_numbers

prints each with its line, and exits with status 1 if there is one. The result files are the
gallery's page, which `python -m figures draw` writes, and the files in `figures/measured/`: whole
runs, as `export` wrote them, with means and standard deviations over seeds; the benchmark's
figures; and wall times.

Only decimals and times (7:11) are checked, since whole numbers are mostly sizes and settings. A
number may be rounded further than in its file. It passes if any value there rounds to it, so this
finds stale numbers; that a number is the right one is for readers to check.
"""

import ast
import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from figures.export import run_records
from figures.kinds import GAN, NF, VAE
from figures.recorded import read_recorded

ROOT = Path(__file__).parent.parent
README, GALLERY = ROOT / "README.md", ROOT / "figures" / "README.md"
MEASURED = ROOT / "figures" / "measured"
# What nothing here has measured, or what follows from numbers beside it.
ELSEWHERE = {
    "3.11": "a version of Python",
    "3.8": "6.1 less 2.3",
}
NUMBER = re.compile(r"(?<![\w.,/-])(\d+:\d\d|\d[\d,]*\.\d+)(?![\w:]|\.\d)")


def unfounded(text: str, known: list[float]) -> list[tuple[int, str]]:
    """(line, number) of each number in a Markdown text that no known one rounds to.

    Blocks and spans of code are left out.
    """
    found = []
    for n, line in enumerate(text.splitlines(), start=1):
        if line.startswith("    "):
            continue
        for number in NUMBER.findall(re.sub(r"`[^`]*`", "", line)):
            if number not in ELSEWHERE and not any(_rounds_to(value, number) for value in known):
                found.append((n, number))
    return found


def known_numbers() -> list[float]:
    """All numbers of the result files."""
    numbers = [float(text) for text in re.findall(r"\d+\.\d+", GALLERY.read_text(encoding="utf-8"))]
    records = run_records(read_recorded(MEASURED / "runs.jsonl"))
    for path in sorted(MEASURED.glob("*.json")):
        numbers += _leaves(json.loads(path.read_bytes()))
    numbers += _leaves(records)
    numbers += over_seeds(records)
    return numbers


def over_seeds(records: list[dict]) -> Iterator[float]:
    """Mean and standard deviation of each value over runs of a kind, data set and length."""
    values = {}
    for record in records:
        for name, value in record.items():
            if isinstance(value, float):
                length = record.get("epoch", record.get("batch"))
                group = record["kind"], record["dataset"], length, name
                values.setdefault(group, []).append(value)
    for same in values.values():
        yield statistics.fmean(same)
        if len(same) > 1:
            yield statistics.stdev(same)


def _leaves(content) -> Iterator[float]:
    if isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _leaves(value)
    elif type(content) in (int, float):  # a bool is an int, too
        yield float(content)


def _rounds_to(value: float, number: str) -> bool:
    if ":" in number:
        minutes, seconds = number.split(":")
        return value == 60 * int(minutes) + int(seconds)
    digits = len(number.partition(".")[2])
    # The gallery's numbers are rounded already, so a 5 after the last digit may go either way.
    return abs(value - float(number.replace(",", ""))) <= 0.5001 * 10**-digits


def texts() -> dict[str, str]:
    """README.md, and the docstrings at the top of the three scripts, by file name."""
    scripts = [ROOT / script for script in (VAE, GAN, NF)]
    trees = {path.name: ast.parse(path.read_text(encoding="utf-8")) for path in scripts}
    docstrings = {name: ast.get_docstring(tree, clean=False) for name, tree in trees.items()}
    return {README.name: README.read_text(encoding="utf-8")} | docstrings


def main() -> None:
    """Print what is unfounded."""
    known = known_numbers()
    found = [(name, *each) for name, text in texts().items() for each in unfounded(text, known)]
    for name, line, number in found:
        print(f"{name}:{line}: no result file supports {number}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
