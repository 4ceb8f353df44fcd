"""Reports of graded submissions: in the terminal, as JSON, CSV, HTML, and for Gradescope.

All that comes from a submission, its names included, passes `words`, and then its format's own
escaping: `csv_cell` or `html_cell`.
"""

import csv
import html
import io
import json
import math

from gencheck.outcomes import (
    ACCUSING,
    NOTE,
    OLD,
    PASS,
    STATUSES,
    UNJUDGED,
    WEAK,
    WRONG,
    Finding,
    printable,
)
from grading.discovery import MODELS, TITLES, Person
from grading.results import FileResult, as_json
from grading.rubric import Rubric

HINTS = ("full", "short", "none")
CELL = 600  # characters
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;width:100%}td,th{padding:.3em .6em;text-align:left;
border-bottom:1px solid #ddd;vertical-align:top;overflow-wrap:anywhere}.wrong{color:#b00020}
.weak{color:#b36b00}.old{color:#6a4fb3}.unjudged{color:#555}.note{color:#005a9c}.pass{color:#1b7a2f}
img{image-rendering:pixelated;width:280px;border:1px solid #ddd}"""


def words(text: str) -> str:
    """A text for people: one line, no control characters or direction marks, not endless."""
    text = printable(text[: CELL + 1])
    return text if len(text) <= CELL else f"{text[: CELL - 1]}…"


def csv_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    text = words(text)
    return f"'{text}" if text.lstrip()[:1] in {*"=+-@|%"} else text


def html_cell(text: str) -> str:
    """A text without markup; its direction doesn't reach what stands beside it."""
    return f"<bdi>{html.escape(words(text))}</bdi>"


def explain(found: Finding, hints: str) -> str:
    """What a report says about a finding: all of it, a hint, or nothing."""
    if hints == "none":
        return ""
    if hints == "short":
        return found.hint if found.status in ACCUSING else ""
    expected = f"; expected {found.expected}" if found.expected else ""
    return f"{found.measured}{expected}"


def sorted_findings(result: FileResult) -> list[Finding]:
    """Failures first."""
    return sorted(result.findings, key=lambda f: STATUSES.index(f.status))


def summary(result: FileResult) -> str:
    """A file's result in a few words."""
    if result.reason:
        return f"could not be judged: {result.reason}"
    counts = {s: sum(f.status == s for f in result.findings) for s in STATUSES}
    parts = [f"{n} {status}" for status, n in counts.items() if n]
    return ", ".join(parts) + ("" if result.is_judged else " (judged in part)")


def terminal(person: Person, rubric: Rubric, hints: str, verbose: bool) -> str:
    """A table of a person's findings, failures first, one line each."""
    earned, possible = rubric.of_person(person)
    lines = [f"{words(person.name)}   {earned:g} of {possible:g} points"]
    for model in MODELS:
        result = person.results.get(model)
        if result is None:
            continue
        lines.append(f"  {TITLES[model]}: {words(summary(result))}")
        lines += [f"    look at it  {words(line)}" for line in result.look]
        for found in sorted_findings(result):
            if verbose or found.status != PASS:
                text = words(explain(found, hints))
                lines.append(f"    {found.status:8}  {found.check:24}  {text}".rstrip())
    lines += [f"  not read: {words(note)}" for note in person.notes]
    if person.other_files:
        lines.append(f"  not judged: {words(', '.join(map(str, person.other_files)))}")
    return "\n".join(lines)


def to_json(people: list[Person], rubric: Rubric) -> str:
    """Everything, as JSON."""
    return json.dumps(
        [
            {
                "name": person.name,
                "points": rubric.of_person(person)[0],
                "possible": rubric.of_person(person)[1],
                "files": {model: as_json(result) for model, result in person.results.items()},
                "not_read": person.notes,
            }
            for person in people
        ],
        indent=1,
    )


def to_csv(people: list[Person], rubric: Rubric) -> str:
    """One row per person."""
    columns = ["name", "points", "possible", "not_read"]
    statuses = (WRONG, WEAK, OLD, UNJUDGED, NOTE)
    for model in MODELS:
        columns += [f"{model}_{name}" for name in ("judged", *statuses, "look_at_it")]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for person in people:
        earned, possible = rubric.of_person(person)
        row = {"name": person.name, "not_read": "; ".join(person.notes)}
        for model, result in person.results.items():
            judged = "yes" if result.is_judged else "in part"
            row[f"{model}_judged"] = f"no: {result.reason}" if result.reason else judged
            for status in statuses:
                names = [f.check for f in result.findings if f.status == status]
                row[f"{model}_{status}"] = " ".join(names)
            row[f"{model}_look_at_it"] = "; ".join(result.look)
        cells = {column: csv_cell(text) for column, text in row.items()}
        writer.writerow(cells | {"points": earned, "possible": possible})
    return out.getvalue()


def to_html(people: list[Person], rubric: Rubric, hints: str) -> str:
    """A self-contained page."""
    parts = [f"<!doctype html><meta charset=utf-8><title>Grading</title><style>{STYLE}</style>"]
    for person in people:
        earned, possible = rubric.of_person(person)
        parts.append(f"<h1>{html_cell(person.name)}</h1><p>{earned:g} of {possible:g} points</p>")
        parts += [f"<p>not read: {html_cell(note)}</p>" for note in person.notes]
        for model in MODELS:
            if model in person.results:
                parts += _html_of_file(person.results[model], hints)
    return "\n".join(parts)


def _html_of_file(result: FileResult, hints: str):
    yield f"<h2>{TITLES[result.model]}</h2><p>{html_cell(summary(result))}</p>"
    for line in result.look:
        yield f"<p>look at it: {html_cell(line)}</p>"
    if result.picture:
        source = f"data:image/png;base64,{html.escape(result.picture)}"
        yield f'<p><img alt="samples" src="{source}"></p>'
    if not result.findings:
        return
    yield "<table><tr><th>status<th>check<th>what was found<th>why it matters</tr>"
    for found in sorted_findings(result):
        why = found.why if hints == "full" else ""
        reference = f" ({found.reference})" if found.reference and hints == "full" else ""
        cells = (found.check, explain(found, hints), why + reference)
        row = "".join(f"<td>{html_cell(cell)}" for cell in cells)
        yield f'<tr><td class="{found.status}">{found.status}{row}</tr>'
    yield "</table>"


def to_gradescope(people: list[Person], rubric: Rubric, hints: str) -> str:
    """Gradescope's results.json for one submission; what to look at is hidden from the student."""
    tests = []
    for result in (r for person in people for r in person.results.values()):
        title = TITLES[result.model]
        if result.reason:
            tests.append({"name": title, "output": words(summary(result)), "max_score": 0})
        if result.look:
            output = "\n".join(map(words, result.look))
            hidden = {"max_score": 0, "visibility": "hidden"}
            tests.append({"name": f"{title}: look at it", "output": output} | hidden)
        for found in sorted_findings(result):
            earned, possible = rubric.of_check(result.model, found)
            test = {"name": f"{title}: {found.check}", "max_score": possible}
            if found.status != UNJUDGED:
                status = "failed" if found.status in ACCUSING else "passed"
                test |= {"score": earned, "status": status}
            output = f"{found.status}. {words(explain(found, hints))}".strip()
            tests.append(test | {"output": output})
    score = math.fsum(t.get("score", 0) for t in tests)
    return json.dumps({"score": score, "tests": tests}, indent=1)


def gradescope_without_results(reason: str) -> str:
    """Gradescope's results.json of a grading that could not be done: no points, and the reason."""
    return json.dumps({"score": 0, "output": words(reason), "tests": []}, indent=1)
