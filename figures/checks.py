"""Grades runs: each one by itself, and the means of those that differ only in their seed."""

import sys
from collections.abc import Iterable

from figures.runs import Runs, StoredRun, seed_groups
from figures.tables import mean_text, verdict
from harness import graded
from harness.errors import UserError


def check(found: Iterable[StoredRun], messages: list[str]) -> int:
    """Print the graded tables; returns exit status 0 only if nothing falls short.

    A mean passes if all of its runs do, so the status depends on the runs alone.
    """
    found = list(found)
    verdicts = []
    for run in found:
        unfinished = "" if run.finished else ", unfinished"
        print(f"{run.folder}: {run.script}, seed {run.args.seed}, {run.length}{unfinished}")
        rows = run.graded()
        print(f"{graded.table(rows, run.counter)}\n")
        verdicts += [row["verdict"] for row in rows]
    for runs in seed_groups(found):
        if len(runs) > 1:
            print(f"{mean_table(runs)}\n")
    for message in messages:
        print(message, file=sys.stderr)
    counts = {
        verdict: verdicts.count(verdict)
        for verdict in ("pass", "falls short", "not reached", "not comparable")
    }
    print(", ".join(f"{verdict}: {count}" for verdict, count in counts.items()))
    if not counts["pass"] + counts["falls short"]:
        raise UserError("nothing could be graded")
    return 1 if counts["falls short"] or messages else 0


def mean_table(runs: Runs) -> str:
    """The graded means of runs that differ only in their seed, as aligned text."""
    seeds = ", ".join(str(run.args.seed) for run in runs)
    first = runs[0]
    lines = [("quantity", "unit", f"at {first.counter}", "mean ± sd (n)")]
    lines[0] += ("reference", "verdict")
    for row in graded.mean_rows(run.graded() for run in runs):
        at, reference = f"{row['at']:,}", mean_text([row["reference"]], 3)
        line = (row["quantity"], row["unit"], at, mean_text(row["values"], 3), reference)
        lines.append((*line, verdict(row)))
    title = f"mean of seeds {seeds}: {first.folder.name}, {first.script}, {first.length}"
    return f"{title}\n{graded.aligned(lines, 'llrrrl')}"
