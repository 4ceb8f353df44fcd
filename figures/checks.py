"""Grades runs: each one by itself, and the means of those that differ only in their seed."""

from figures.runs import Runs, seed_groups
from figures.tables import mean_text, verdict
from harness import cli, references
from harness.errors import UserError
from harness.escape import words
from harness.references import IMPLAUSIBLE, NOT_COMPARABLE, NOT_REACHED, PASS, SHORT


def check(found: Runs, messages: list[str]) -> int:
    """Print the graded tables; returns exit status 0 only if nothing falls short.

    A mean passes if all of its runs do, so the status depends on the runs alone.

    Raises:
        UserError: nothing could be graded.
    """
    verdicts = []
    for run in found:
        unfinished = "" if run.finished else ", unfinished"
        images = "" if run.dataset == "mnist" else f", on {words(run.dataset)}"
        about = f"{run.script}, seed {run.seed}, {run.length}{unfinished}{images}"
        print(f"{words(str(run.folder))}: {about}")
        graded = run.graded()
        print(f"{references.table(graded, run.counter)}\n")
        for one in graded:
            if one.verdict == IMPLAUSIBLE and one.row.implausible:
                low, high = one.row.plausible
                bounds = f"{one.row.quantity}: {one.value:.3f} is not plausible for this model"
                print(f"{bounds} ({low:g} to {high:g} {one.row.unit}): {one.row.implausible}\n")
        verdicts += [one.verdict for one in graded]
    for runs in seed_groups(found):
        if len(runs) > 1:
            print(f"{mean_table(runs)}\n")
    cli.complain(messages)
    counts = {
        kind: sum(verdict.startswith(kind) for verdict in verdicts)
        for kind in (PASS, SHORT, IMPLAUSIBLE, NOT_REACHED, NOT_COMPARABLE)
    }
    print(", ".join(f"{kind}: {count}" for kind, count in counts.items()))
    failed = counts[SHORT] + counts[IMPLAUSIBLE]
    if not counts[PASS] + failed:
        raise UserError(
            "nothing could be graded: no run with settings that compare has reached a graded epoch"
        )
    return 1 if failed or messages else 0


def mean_table(runs: Runs) -> str:
    """The graded means of runs that differ only in their seed, as aligned text."""
    seeds = ", ".join(str(run.seed) for run in runs)
    first = runs[0]
    at = f"at {first.counter}"
    lines = [("quantity", "unit", at, "mean ± sd (n)", "reference", "verdict")]
    for graded in references.mean_rows(run.graded() for run in runs):
        row, value = graded.row, mean_text(graded.values, 3)
        line = (row.quantity, row.unit, f"{graded.at:,}", value, row.bound, verdict(graded))
        lines.append(line)
    title = f"mean of seeds {seeds}: {words(first.folder.name)}, {first.script}, {first.length}"
    return f"{title}\n{references.aligned(lines, 'llrrrl')}"
