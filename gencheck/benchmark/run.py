"""Run the cases: `python -m gencheck.benchmark.run FOLDER [NAME ...]`."""

import sys
import time
import warnings
from pathlib import Path

import torch

from gencheck import CheckFailure, NotJudged
from gencheck.benchmark.cases import CASES
from gencheck.benchmark.sources import Sources


def verdict(case, sources: Sources) -> tuple[str, str]:
    """What gencheck says about a case, and in one line why.

    A case with a bug is wrong only if the check that is meant for it says so.
    """
    torch.manual_seed(0)
    try:
        case.check(sources)
    except CheckFailure as failure:
        failures = {found.check: found.line() for found in failure.result.failures}
        if case.finding and case.finding not in failures:
            return f"no {case.finding}", "; ".join(failures.values())
        return "wrong", failures.get(case.finding, "; ".join(failures.values()))
    except NotJudged as reason:
        return "not judged", str(reason).splitlines()[0]
    return "right", ""


def main(arguments: list[str]) -> None:
    """Print a row for each case; exit with 1 if one is missed or falsely accused."""
    folder, *names = arguments
    sources, bad = Sources(Path(folder).resolve()), 0
    warnings.simplefilter("ignore")
    print("| implementation | bug | expected | found | s | |\n|---|---|---|---|---|---|")
    for case in CASES:
        if names and not any(name in case.name for name in names):
            continue
        start = time.process_time()
        found, why = verdict(case, sources)
        seconds = time.process_time() - start
        words = "" if found in case.expected else "MISSED" if case.bug else "ACCUSED"
        bad += bool(words)
        expected = " or ".join(case.expected)
        row = (case.name, case.bug, expected, found, f"{seconds:.1f}", f"{words} {why}".strip())
        print("|", " | ".join(row), "|", flush=True)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main(sys.argv[1:])
