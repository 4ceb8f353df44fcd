"""Graded rows: numbers of a run beside their references, with a verdict each.

A script states its rows as data; `fill_rows` fills them from the run's files alone.
"""

import math
import operator
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from harness.records import count_of

TAIL = 0.1  # `tail_mean` averages over the last tenth of a run


class Row(NamedTuple):
    """What is graded.

    Attributes:
        quantity, unit: its name and unit in the table.
        value: called as value(history, results, at) with the lines of `metrics.jsonl`, the
            results in `result.json` and `at`; returns None if the run has no such value yet.
        reference: what the value is compared with.
        at: the epoch or batch of the value; None is the end of the run.
        source: whose number the reference is.
        low, high: the bounds of a pass; no `high` means the reference.
        reached: the epoch or batch before which the end of a run is no value yet.
        optional: leave the row out if there is no value.
    """

    quantity: str
    unit: str
    value: Callable[[list[dict], dict, int], float | None]
    reference: float
    at: int | None = None
    source: str = ""
    low: float = -math.inf
    high: float | None = None
    reached: int = 0
    optional: bool = False

    def star(self) -> tuple[int, float, str]:
        """The reference as a point of a plot: (at, reference, label)."""
        return self.at, self.reference, f"{self.source}, {self.reference:.2f}"

    def passes(self, value: float) -> bool:
        """Whether the value is within the bounds."""
        return self.low <= value <= (self.reference if self.high is None else self.high)

    def filled(self, at: int, value: float | None, comparable: bool) -> "FilledRow":
        """The row with a value, None if there is none yet, and the verdict on it."""
        if not comparable:
            verdict = "not comparable"
        elif value is None:
            verdict = "not reached"
        else:
            verdict = "pass" if self.passes(value) else "falls short"
        return FilledRow(
            self,
            quantity=self.quantity,
            unit=self.unit,
            at=at,
            value=value,
            reference=self.reference,
            verdict=verdict,
        )


class FilledRow(dict):
    """A row with its value and verdict, as `result.json` keeps it; `row` is the `Row` it fills."""

    def __init__(self, row: Row, **content):
        super().__init__(content)
        self.row = row


def at_most(quantity: str, unit: str, value: Callable, bound: float, reached: int = 0) -> Row:
    """A row of the end of the run that says its upper bound."""
    return Row(f"{quantity}, at most", unit, value, bound, reached=reached)


def at_least(quantity: str, unit: str, value: Callable, bound: float, reached: int = 0) -> Row:
    """A row of the end of the run that says its lower bound."""
    words = f"{quantity}, at least"
    return Row(words, unit, value, bound, low=bound, high=math.inf, reached=reached)


def rows_at(references: dict[int, float], quantity: str, unit: str, key: str) -> list[Row]:
    """A row of the metric `key` for each epoch or batch and its reference."""
    return [Row(quantity, unit, metric(key), value, at) for at, value in references.items()]


def between(
    quantity: str,
    unit: str,
    value: Callable,
    reference: float,
    low: float,
    high: float,
    reached: int = 0,
) -> Row:
    """A row of the end of the run that says both of its bounds."""
    words = f"{quantity}, {low:g} to {high:g}"
    return Row(words, unit, value, reference, low=low, high=high, reached=reached)


def optional(*rows: Row) -> list[Row]:
    """The same rows, each left out if it has no value."""
    return [row._replace(optional=True) for row in rows]


def metric(key: str) -> Callable:
    """The metric of the line whose count is `at`."""

    def value(history, results, at):
        return next((line.get(key) for line in history if count_of([line]) == at), None)

    return value


def tail_mean(key: str) -> Callable:
    """The metric's mean over the last tenth of the run."""

    def value(history, results, at):
        first = (1 - TAIL) * count_of(history)
        tail = [line[key] for line in history if count_of([line]) > first]
        return sum(tail) / len(tail) if tail else None

    return value


def result(part: str, key: str) -> Callable:
    """The number `key` of the result `part`."""

    def value(history, results, at):
        return results.get(part, {}).get(key)

    return value


def ratio(a: Callable, b: Callable) -> Callable:
    """a / b; None if one of them is None."""
    return _combined(operator.truediv, a, b)


def distance(a: Callable, b: Callable) -> Callable:
    """|a - b|; None if one of them is None."""
    return _combined(lambda a, b: abs(a - b), a, b)


def _combined(function: Callable, *parts: Callable) -> Callable:
    def value(history, results, at):
        values = [part(history, results, at) for part in parts]
        return None if None in values else function(*values)

    return value


def comparable(settings: dict[str, tuple], args) -> bool:
    """Whether a run's arguments are all among those with which the references compare."""
    return all(vars(args)[name] in values for name, values in settings.items())


def fill_rows(
    rows: list[Row], settings: dict[str, tuple], args, history: list[dict], results: dict
) -> list[FilledRow]:
    """Fill the rows with a run's values and verdicts, as they stand in `result.json`.

    Args:
        rows: what is graded.
        settings: by argument, the values with which a run can be compared with the references.
        args: the run's arguments.
        history, results: the run's metrics and results.
    """
    graded, last, compares = [], count_of(history), comparable(settings, args)
    for row in rows:
        at = max(last, row.reached) if row.at is None else row.at
        value = row.value(history, results, at) if last >= row.reached else None
        if row.optional and value is None:
            continue
        graded.append(row.filled(at, value, compares))
    return graded


def mean_rows(seeds: Iterable[list[FilledRow]]) -> list[FilledRow]:
    """The rows of runs that differ only in their seed: their means, graded anew.

    Beside the keys of `fill_rows` they have `values` (of every run), `spread` (their standard
    deviation; None for one run), and `n_passing` (runs that pass by themselves). A mean is None
    if a value is.
    """
    by_row = {}
    for rows in seeds:
        for filled in rows:
            by_row.setdefault((filled["quantity"], filled["at"]), []).append(filled)
    means = []
    for same in by_row.values():
        values, verdicts = ([filled[key] for filled in same] for key in ("value", "verdict"))
        complete = None not in values
        mean = same[0].row.filled(
            same[0]["at"],
            statistics.fmean(values) if complete else None,
            "not comparable" not in verdicts,
        )
        spread = statistics.stdev(values) if complete and len(values) > 1 else None
        mean |= {"values": values, "spread": spread, "n_passing": verdicts.count("pass")}
        means.append(mean)
    return means


def cells(graded: list[FilledRow], counter: str) -> list[tuple[str, ...]]:
    """A heading and the graded rows as text; `counter` ('epoch' or 'batch') is what `at` counts."""
    rows = [("quantity", "unit", f"at {counter}", "this run", "reference", "verdict")]
    for row in graded:
        value = "-" if row["value"] is None else f"{row['value']:.3f}"
        at, reference = f"{row['at']:,}", f"{row['reference']:.3f}"
        rows.append((row["quantity"], row["unit"], at, value, reference, row["verdict"]))
    return rows


def table(graded: list[FilledRow], counter: str) -> str:
    """The `cells` of graded rows as aligned text."""
    return aligned(cells(graded, counter), "llrrrl")


def aligned(rows: Sequence[Sequence[str]], align: str) -> str:
    """Cells as text in columns; `align` has a letter for each, l or r."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    pads = [{"l": str.ljust, "r": str.rjust}[letter] for letter in align]
    return "\n".join(
        "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths)).rstrip()
        for row in rows
    )
