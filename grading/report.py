"""Reports of graded submissions: in the terminal, as JSON, CSV, HTML, and for Gradescope."""

import csv
import html
import io
import json

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
from grading.grader import MODELS, FileResult, Person, as_json
from grading.rubric import Rubric

HINTS = ("full", "short", "none")
TITLES = {"vae": "VAE", "gan": "GAN", "nf": "flow"}
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;width:100%}td,th{padding:.3em .6em;text-align:left;
border-bottom:1px solid #ddd;vertical-align:top}.wrong{color:#b00020}.weak{color:#b36b00}
.old{color:#6a4fb3}.unjudged{color:#555}.note{color:#005a9c}.pass{color:#1b7a2f}
img{image-rendering:pixelated;width:280px;border:1px solid #ddd}"""


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
    words = [f"{n} {status}" for status, n in counts.items() if n]
    return ", ".join(words) + ("" if result.is_judged else " (judged in part)")


def terminal(person: Person, rubric: Rubric, hints: str, verbose: bool) -> str:
    """A table of a person's findings, failures first, one line each."""
    earned, possible = rubric.of_person(person)
    lines = [f"{person.name}   {earned:g} of {possible:g} points"]
    for model in MODELS:
        result = person.results.get(model)
        if result is None:
            continue
        lines.append(f"  {TITLES[model]}: {summary(result)}")
        for found in sorted_findings(result):
            if verbose or found.status != PASS:
                text = explain(found, hints)
                lines.append(f"    {found.status:8}  {found.check:24}  {text}".rstrip())
    if person.other_files:
        lines.append(f"  not judged: {printable(', '.join(map(str, person.other_files)))}")
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
            }
            for person in people
        ],
        indent=1,
    )


def to_csv(people: list[Person], rubric: Rubric) -> str:
    """One row per person."""
    columns = ["name", "points", "possible"]
    for model in MODELS:
        columns += [f"{model}_{name}" for name in ("judged", WRONG, WEAK, OLD, UNJUDGED, NOTE)]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for person in people:
        earned, possible = rubric.of_person(person)
        row = {"name": _safe(person.name), "points": earned, "possible": possible}
        for model, result in person.results.items():
            judged = "yes" if result.is_judged else "in part"
            row[f"{model}_judged"] = f"no: {result.reason}" if result.reason else judged
            for status in (WRONG, WEAK, OLD, UNJUDGED, NOTE):
                names = [f.check for f in result.findings if f.status == status]
                row[f"{model}_{status}"] = " ".join(names)
        writer.writerow(row)
    return out.getvalue()


def _safe(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell[:1] in "=+-@" else cell


def to_html(people: list[Person], rubric: Rubric, hints: str) -> str:
    """A self-contained page."""
    parts = [f"<!doctype html><meta charset=utf-8><title>Grading</title><style>{STYLE}</style>"]
    for person in people:
        earned, possible = rubric.of_person(person)
        parts.append(f"<h1>{html.escape(person.name)}</h1><p>{earned:g} of {possible:g} points</p>")
        for model in MODELS:
            if model in person.results:
                parts += _html_of_file(person.results[model], hints)
    return "\n".join(parts)


def _html_of_file(result: FileResult, hints: str):
    yield f"<h2>{TITLES[result.model]}</h2><p>{html.escape(summary(result))}</p>"
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
        row = "".join(f"<td>{html.escape(cell)}" for cell in cells)
        yield f'<tr><td class="{found.status}">{found.status}{row}</tr>'
    yield "</table>"


def to_gradescope(people: list[Person], rubric: Rubric, hints: str) -> str:
    """Gradescope's results.json for one submission."""
    tests = []
    for result in (r for person in people for r in person.results.values()):
        if result.reason:
            tests.append({"name": TITLES[result.model], "output": summary(result), "max_score": 0})
        for found in sorted_findings(result):
            earned, possible = rubric.of_check(result.model, found)
            test = {"name": f"{TITLES[result.model]}: {found.check}", "max_score": possible}
            if found.status != UNJUDGED:
                status = "failed" if found.status in ACCUSING else "passed"
                test |= {"score": earned, "status": status}
            output = f"{found.status}. {explain(found, hints)}".strip()
            tests.append(test | {"output": output})
    return json.dumps({"score": sum(t.get("score", 0) for t in tests), "tests": tests}, indent=1)
