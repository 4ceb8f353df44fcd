"""Grading: numbers of a run beside the published ones and the bars of `references.toml`.

Nothing here knows a script, its metrics or its numbers: the file says what compares with what. A
run compares with a row only if all of its settings are those of the row, except harmless ones.
"""

import functools
import math
import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.escape import words
from harness.records import count_of, counter_of

FILE = Path(__file__).parents[1] / "references.toml"
PASS, SHORT, IMPLAUSIBLE = "pass", "falls short", "not plausible"
NOT_REACHED, NOT_COMPARABLE = "not reached", "not comparable"
LAST_TENTH, TAIL = "last tenth", 0.1  # the `at` of a mean over this share of a run


@dataclass(frozen=True)
class Row:
    """A published number or a bar; `references.toml` explains the attributes."""

    quantity: str
    unit: str
    key: str | tuple[str, str]
    at: int | str
    value: float
    kind: str
    source: str
    label: str = ""
    low: float = -math.inf
    high: float = math.inf
    plausible: tuple[float, float] = (-math.inf, math.inf)
    implausible: str = ""
    after: int = 0
    optional: bool = False

    @property
    def bound(self) -> str:
        """The value as a table says it: '95.000', 'at least 0.850', '1.250 (0.9 to 1.5)'."""
        if math.isfinite(self.low) and math.isfinite(self.high):
            return f"{self.value:.3f} ({self.low:g} to {self.high:g})"
        if math.isfinite(self.low):
            return f"at least {self.low:.3f}"
        if self.kind == "bar" or self.high != self.value:
            return f"at most {self.high:.3f}"
        return f"{self.value:.3f}"

    def verdict(self, value: float) -> str:
        """PASS, SHORT or IMPLAUSIBLE."""
        if not self.plausible[0] <= value <= self.plausible[1]:
            return IMPLAUSIBLE
        return PASS if self.low <= value <= self.high else SHORT

    def graded(self, at: int, value: float | None, difference: str | None) -> "Graded":
        """The row with a value, None if there is none yet, and the verdict on it."""
        if difference is not None:
            verdict = f"{NOT_COMPARABLE}: {difference}"
        else:
            verdict = NOT_REACHED if value is None else self.verdict(value)
        return Graded(self, at, value, verdict)


@dataclass(frozen=True)
class Graded:
    """A row with the value of a run, None if there is none yet, and the verdict on it.

    The mean of several runs has their `values`, too, and how many of them pass by themselves.
    """

    row: Row
    at: int
    value: float | None
    verdict: str
    values: tuple[float | None, ...] = ()
    n_passing: int = 0

    def as_dict(self) -> dict:
        """The row as `result.json` keeps it."""
        return {
            "quantity": self.row.quantity,
            "unit": self.row.unit,
            "at": self.at,
            "value": self.value,
            "reference": self.row.value,
            "source": self.row.source,
            "verdict": self.verdict,
        }


@functools.cache
def load(path: Path = FILE) -> dict:
    """The content of `references.toml`."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def protocol_of(script: str, settings: Mapping) -> dict:
    """The `settings`, `rows` and `curve` (or None) of a script's protocol, with the shared ones.

    A script that the file doesn't know, someone's own, has no rows.
    """
    for table in load().values():
        if isinstance(table, dict) and table["script"] == script:
            own = table[settings["protocol"]]
            return {
                "settings": table.get("settings", {}) | own.get("settings", {}),
                "rows": own.get("rows", []) + table.get("rows", []),
                "curve": own.get("curve") or table.get("curve"),
            }
    return {"settings": {}, "rows": [], "curve": None}


def rows(script: str, settings: Mapping) -> list[Row]:
    """The rows that grade a run of a script with these settings."""
    tables = protocol_of(script, settings)["rows"]
    return [Row(**{name: _hashable(value) for name, value in row.items()}) for row in tables]


def _hashable(value):
    return tuple(value) if isinstance(value, list) else value


def difference(script: str, settings: Mapping) -> str | None:
    """Why a run doesn't compare with the references: 'zdim is 2, not 20'; None if it does."""
    wanted, harmless = protocol_of(script, settings)["settings"], load()["harmless"]
    for name, value in sorted(settings.items(), key=lambda item: item[0] != "dataset"):
        if name in harmless:
            continue
        if name not in wanted:
            return f"{name} is {value}, which no reference has"
        allowed = wanted[name] if isinstance(wanted[name], list) else [wanted[name]]
        if value not in allowed:
            return f"{name} is {_end_of(value)}, not {' or '.join(map(str, allowed))}"
    missing = [name for name in wanted if name not in settings]
    return f"{missing[0]} is missing" if missing else None


def _end_of(value) -> str:
    """A setting in short: of a path its last name, since every row of a table repeats it."""
    text = str(value)
    name = Path(text).name
    return text if name in ("", text) else f".../{name}"


def grade(
    script: str, settings: Mapping, history: Sequence[dict], results: Mapping
) -> list[Graded]:
    """The graded rows of a run, from its settings, metrics and results alone."""
    graded, last, differs = [], count_of(history), difference(script, settings)
    for row in rows(script, settings):
        at = row.at if isinstance(row.at, int) else max(last, row.after)
        value = _value(row, history, results) if last >= row.after else None
        if value is not None or not row.optional:
            graded.append(row.graded(at, value, differs))
    return graded


def _value(row: Row, history: Sequence[dict], results: Mapping) -> float | None:
    """The value of a row's key, or how far those of its two keys are apart."""
    keys = (row.key,) if isinstance(row.key, str) else row.key
    values = [_value_of(key, row.at, history, results) for key in keys]
    if None in values:
        return None
    return values[0] if len(values) == 1 else abs(values[0] - values[1])


def _value_of(key: str, at: int | str, history: Sequence[dict], results: Mapping) -> float | None:
    part, _, name = key.rpartition(".")
    if part:
        return results.get(part, {}).get(name)
    if at == LAST_TENTH:
        return tail_mean(history, key)
    count = count_of(history) if at == "end" else at
    return next((line.get(key) for line in history if line[counter_of(line)] == count), None)


def tail_mean(history: Sequence[dict], key: str) -> float | None:
    """The mean of a metric over the last tenth of a run; None if no line there has it."""
    first = (1 - TAIL) * count_of(history)
    tail = [line[key] for line in history if line[counter_of(line)] > first and key in line]
    return statistics.fmean(tail) if tail else None


def points(script: str, settings: Mapping, key: str) -> list[tuple[int, float, str]]:
    """Published values of a metric, to mark in its plot: (epoch or batch, value, label).

    They are the points of a published curve if there is one. A run that doesn't compare has none.
    """
    if difference(script, settings) is not None:
        return []
    curve = protocol_of(script, settings)["curve"]
    if curve and curve["key"] == key:
        return [(at, value, curve["label"]) for at, value in zip(curve["at"], curve["values"])]
    return [
        (row.at, row.value, f"{row.label}, {row.value:.2f}")
        for row in rows(script, settings)
        if row.key == key and isinstance(row.at, int) and row.label
    ]


def levels(script: str, settings: Mapping, key: str) -> list[tuple[float, str]]:
    """Published values of a metric over the end of a run, to draw as lines: (value, label)."""
    if difference(script, settings) is not None:
        return []
    return [
        (row.value, f"{row.label} {row.value:g}")
        for row in rows(script, settings)
        if row.key == key and row.at == LAST_TENTH and row.label
    ]


def mean_rows(seeds: Iterable[list[Graded]]) -> list[Graded]:
    """The rows of runs that differ only in their seed: their means, graded anew.

    A mean is None if a value is.
    """
    by_row = {}
    for of_run in seeds:
        for graded in of_run:
            by_row.setdefault((graded.row, graded.at), []).append(graded)
    means = []
    for (row, at), same in by_row.items():
        values = tuple(graded.value for graded in same)
        mean = None if None in values else statistics.fmean(values)
        compares = [g.verdict for g in same if g.verdict.startswith(NOT_COMPARABLE)]
        differs = compares[0].partition(": ")[2] if compares else None
        verdict = row.graded(at, mean, differs).verdict
        n_passing = [graded.verdict for graded in same].count(PASS)
        means.append(Graded(row, at, mean, verdict, values, n_passing))
    return means


def cells(graded: Sequence[Graded], counter: str) -> list[tuple[str, ...]]:
    """A heading and the graded rows as text; `counter` ('epoch' or 'batch') is what `at` counts."""
    lines = [("quantity", "unit", f"at {counter}", "this run", "reference", "verdict")]
    for one in graded:
        value = "-" if one.value is None else f"{one.value:.3f}"
        row = one.row
        lines.append((row.quantity, row.unit, f"{one.at:,}", value, row.bound, one.verdict))
    return lines


def table(graded: Sequence[Graded], counter: str) -> str:
    """The `cells` of graded rows as aligned text."""
    return aligned(cells(graded, counter), "llrrrl")


def aligned(lines: Sequence[Sequence[str]], align: str) -> str:
    """Cells as text in columns; `align` has a letter for each, l or r."""
    lines = [list(map(words, line)) for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines)]
    pads = [{"l": str.ljust, "r": str.rjust}[letter] for letter in align]
    return "\n".join(
        "  ".join(pad(cell, width) for pad, cell, width in zip(pads, line, widths)).rstrip()
        for line in lines
    )
