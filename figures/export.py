"""The table of all runs as CSV or JSON, of their means as LaTeX, and whole runs as JSON lines."""

import csv
import io
import itertools
import json
import os
import re
from pathlib import Path

from figures.kinds import KINDS
from figures.recorded import record
from figures.runs import NOT_OF_TRAINING, Groups, Runs, StoredRun, is_of_kind
from figures.tables import graded_lines, other_groups
from harness.errors import UserError
from harness.escape import csv_cell, latex
from harness.files import may_replace, write_whole
from harness.references import NOT_COMPARABLE


def check_file(path: Path) -> None:
    """Raise ValueError unless the file has one of the formats and can be written."""
    if path.suffix not in FORMATS:
        raise ValueError(f"{path} must end in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    writable = os.access(path.parent, os.W_OK)
    if path.is_dir() or not writable:
        raise ValueError(f"{path} cannot be written")
    if not may_replace(path, STARTS[path.suffix]):
        raise ValueError(f"{path} is there and is no earlier export: name another file")


def export(path: Path, found: Runs, groups: Groups) -> None:
    """Write all runs, for LaTeX the means by kind, in the format of `path`.

    Raises:
        UserError: there is nothing to write.
    """
    if not found:
        raise UserError("there are no runs to export")
    content = FORMATS[path.suffix](found, groups).encode(errors="backslashreplace")
    write_whole(path, lambda file: file.write(content))


def run_records(found: Runs) -> list[dict]:
    """A flat dict of each run: its settings where runs differ, graded values, metrics and results.

    Metrics are those at the end; of a GAN means over the last tenth.
    """
    values = {}  # of a setting of a script
    for run in found:
        for name, value in run.settings.items():
            values.setdefault((run.script, name), set()).add(repr(value))
    differing = {name for (_, name), reprs in values.items() if len(reprs) > 1}
    return [_record(run, differing - NOT_OF_TRAINING) for run in found]


def _record(run: StoredRun, differing: set[str]) -> dict:
    kinds = (name for name, kind in KINDS.items() if is_of_kind(run, kind, run.dataset))
    record = {
        "run": run.folder.name,
        "script": run.script,
        "kind": next(kinds, None),
        "dataset": run.dataset,
        "seed": run.seed,
        "finished": run.finished,
        run.counter: run.count,
    }
    record |= {name: value for name, value in sorted(run.settings.items()) if name in differing}
    for graded in run.graded():
        name = f"{graded.row.quantity} ({graded.row.unit}) at {run.counter} {graded.at}"
        record |= {name: graded.value, f"{name}: verdict": graded.verdict}
    for key in run.history[-1] if run.history else ():
        if key not in {run.counter, "seconds", *run.settings}:
            record[key] = run.final(key)
    for part, values in run.results.items():
        record |= {f"{part}.{key}": value for key, value in values.items()}
    return record | {"seconds": round(run.seconds, 3), "device": run.config.get("device")}


def _csv(found: Runs, groups: Groups) -> str:
    records = run_records(found)
    names = list(dict.fromkeys(name for record in records for name in record))
    last = ["seconds", "device"]
    names = [name for name in names if name not in last] + last
    file = io.StringIO()
    writer = csv.writer(file)
    for row in (names, *([run.get(name) for name in names] for run in records)):
        writer.writerow([csv_cell(cell) if isinstance(cell, str) else cell for cell in row])
    return file.getvalue()


def _json(found: Runs, groups: Groups) -> str:
    return json.dumps(run_records(found), indent=2, ensure_ascii=False) + "\n"


def _jsonl(found: Runs, groups: Groups) -> str:
    lines = [record(run) for run in found if run.finished]
    if not lines:
        raise UserError("only finished runs are recorded: there is none")
    return "".join(f"{line}\n" for line in lines)


def _tex(found: Runs, groups: Groups) -> str:
    groups = groups | other_groups(found, groups)
    lines = graded_lines(groups, details=False)  # with all of them it would not fit on a page
    if not lines:
        raise UserError("LaTeX shows means of finished runs: there is none")
    rows = []
    for training, same in itertools.groupby(lines, key=lambda line: line.training):
        rows += [r"\midrule", rf"\multicolumn{{4}}{{@{{}}l}}{{\emph{{{latex(training)}}}}} \\"]
        for line in same:
            reference = "-" if line.verdict.startswith(NOT_COMPARABLE) else line.reference
            cells = (line.quantity, line.at, line.value, reference)
            rows.append(" & ".join(map(latex, cells)) + r" \\")
    return "\n".join([_HEAD, *rows, _FOOT])


# In this size the table of all kinds fits on a page, and into a column of text of article.cls.
_HEAD = r"""% Needs \usepackage{booktabs}.
\begin{table}
\centering
\scriptsize
\setlength{\tabcolsep}{3pt}
\caption{Results, on MNIST unless other data are named: mean $\pm$ standard deviation over seeds
  (number of seeds). A value without $\pm$ is of one seed.}
\label{tab:results}
\begin{tabular}{@{}p{0.4\linewidth}rrr@{}}
\toprule
Quantity & At & Value & Reference \\"""
_FOOT = r"""\bottomrule
\end{tabular}
\end{table}
"""
# How the files of each format begin, by which an earlier export is known.
STARTS = {
    ".csv": "run,script,kind,dataset,seed,finished,",
    ".json": r'\[\n  {\n    "run": "[^\n]*",\n    "script": "a3_',
    ".jsonl": r'{"run": "[^\n]*?", "config": {',
    ".tex": re.escape(_HEAD),
}
FORMATS = {".csv": _csv, ".json": _json, ".jsonl": _jsonl, ".tex": _tex}
