"""Reports of graded submissions: in the terminal, as JSON, CSV, and for Gradescope.

All that comes from a submission, its names included, passes `words`, and then its format's own
escaping, such as `csv_cell`.
"""

import csv
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
)
from grading.checks import STOPPED
from grading.code_files import MODELS, TITLES
from grading.discovery import Person
from grading.results import FileResult, as_json
from grading.rubric import Rubric
from harness.escape import csv_cell, words

HINTS = ("full", "short", "none")
# Why something is left to look at by hand
OWN = "the submission: missing, unfinished, or it does not run"
GRADER = "the grader can't judge it"
TIME = "the time limit: grade again with a larger --time_limit, or on an idle machine"
CAUSES = (OWN, GRADER, TIME)
# How our own reports begin, which may be overwritten.
CSV_START = "name,points,possible,percent,"
JSON_START = r'\[\n {\n  "name": '
GRADESCOPE_START = r'{\n "score": '


def explain(found: Finding, hints: str) -> str:
    """What a report says about a finding: all of it, a hint or why it is unjudged, or nothing."""
    if hints == "none":
        return ""
    if hints == "short":
        hint = found.hint if found.status in ACCUSING else ""
        return found.measured if found.status == UNJUDGED else hint
    is_news = found.status != PASS and found.expected and found.expected != found.measured
    return f"{found.measured}; expected {found.expected}" if is_news else found.measured


def grouped(result: FileResult) -> list[tuple[str, list[Finding]]]:
    """(status, findings) in the order of a report, failures first.

    Unjudged checks with one reason stand together, others alone.
    """
    groups, by_reason = [], {}
    for found in sorted(result.findings, key=lambda f: STATUSES.index(f.status)):
        same = by_reason.get(found.measured) if found.status == UNJUDGED else None
        if same is None:
            same = []
            groups.append((found.status, same))
            if found.status == UNJUDGED:
                by_reason[found.measured] = same
        same.append(found)
    return groups


def summary(result: FileResult) -> str:
    """A file's result in a few words."""
    counts = {s: sum(f.status == s for f in result.findings) for s in STATUSES}
    parts = [f"{n} {status}" for status, n in counts.items() if n]
    if result.reason:
        return "; ".join([f"could not be judged: {result.reason}", *parts])
    return ", ".join(parts) + ("" if result.is_judged else " (judged in part)")


def not_handed_in(person: Person, rubric: Rubric) -> list[str]:
    """The models that are asked for and not there."""
    missing = [TITLES[m] for m in rubric.models if m not in person.results]
    return missing if person.is_person else []


def remarks(person: Person, rubric: Rubric) -> list[str]:
    """Lines about a person's folder: what is missing, not read, or not judged."""
    lines = [f"not judged: {reason}" for reason in [person.reason()] if reason]
    if person.files and (missing := not_handed_in(person, rubric)):
        lines.append(f"not handed in: {', '.join(missing)}")
    lines += [f"not read: {note}" for note in person.notes]
    return lines + [f"not judged: {line}" for line in person.others]


def terminal(person: Person, rubric: Rubric, hints: str, verbose: bool) -> str:
    """A table of a person's findings, failures first, one line each."""
    points = f"   {rubric.of_person(person)}" if person.is_person else ""
    lines = [f"{words(person.name)}{points}"]
    for model in MODELS:
        result = person.results.get(model)
        if result is None:
            continue
        lines.append(f"  {TITLES[model]}: {words(result.path)}: {words(summary(result))}")
        lines += [f"    look at it  {words(line)}" for line in result.look]
        for status, same in grouped(result):
            if verbose or status != PASS:
                text = words(explain(same[0], hints))
                names = ", ".join(found.check for found in same)
                lines.append(f"    {status:8}  {names:24}  {text}".rstrip())
    return "\n".join([*lines, *(f"  {words(line)}" for line in remarks(person, rubric))])


def by_hand(people: list[Person], rubric: Rubric) -> str:
    """Who and what a person has to look at, with the reason, by cause; "" if there is nothing."""
    lines = {cause: [] for cause in CAUSES}
    for person in people:
        if missing := not_handed_in(person, rubric):
            reason = f" ({person.reason()})" if person.reason() else ""
            lines[OWN].append((person.name, f"not handed in: {', '.join(missing)}{reason}"))
        for model, result in person.results.items():
            if reason := _left_open(model, result, rubric):
                lines[_cause(result)].append((person.name, f"{TITLES[model]}  {reason}"))
    text = ["To look at by hand:"]
    for cause in CAUSES:
        if lines[cause]:
            text.append(f"  {cause}")
            text += [f"    {words(name)}  {words(line, 120)}" for name, line in lines[cause]]
    return "\n".join(text) if any(lines.values()) else ""


def _left_open(model, result, rubric) -> str:
    """Why points of a file are open, or ""."""
    points = rubric.of_checks(model, result)
    checks = [check for check in points if points[check].unjudged]
    if result.reason:
        return result.reason if checks else ""
    reasons, by_reason = {found.check: found.measured for found in result.findings}, {}
    for check in checks:
        by_reason.setdefault(reasons.get(check, "not run"), []).append(check)
    parts = []
    for reason, same in by_reason.items():
        names = ", ".join(same) if len(same) < 4 else f"{len(same)} checks"
        parts.append(f"{names}: {reason}")
    return "; ".join(parts)


def _cause(result):
    if result.reason.startswith(STOPPED):
        return TIME
    does_not_run = any(f.check == "runs" and f.status == WRONG for f in result.findings)
    return OWN if does_not_run or result.reason.startswith("not implemented") else GRADER


def to_json(people: list[Person], rubric: Rubric) -> str:
    """Everything, as JSON."""
    return json.dumps([_person_as_json(person, rubric) for person in people], indent=1)


def _person_as_json(person, rubric):
    content = {"name": person.name}
    if person.is_person:
        points = rubric.of_person(person)
        content |= {"points": points.earned, "possible": points.total, "percent": points.percent}
        content |= {"at_most": points.at_most, "unjudged": points.unjudged}
        content |= {"not_handed_in": not_handed_in(person, rubric)}
        content["reason"] = person.reason()
    files = {}
    for model, result in person.results.items():
        checks = rubric.of_checks(model, result)
        points = {n: {"points": p.earned, "possible": p.total} for n, p in checks.items()}
        files[model] = as_json(result) | {"points": points}
    return content | {"files": files, "not_read": person.notes, "not_judged": person.others}


def to_csv(people: list[Person], rubric: Rubric) -> str:
    """One row per person; the last columns are the points of each check, empty where unjudged."""
    columns = ["name", "points", "possible", "percent", "at_most", "unjudged", "not_handed_in",
               "not_read", "not_judged"]  # fmt: skip
    statuses = (WRONG, WEAK, OLD, UNJUDGED, NOTE)
    for model in MODELS:
        columns += [f"{model}_{name}" for name in ("file", "judged", *statuses, "look_at_it")]
    checks = {m: [c for c, n in rubric.points[m].items() if n] for m in rubric.models}
    columns += [f"{model}.{check}" for model in checks for check in checks[model]]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for person in people:
        row = {"name": person.name, "not_read": "; ".join(person.notes)}
        row["not_judged"] = "; ".join([person.reason()] * (not person.files) + person.others)
        row["not_handed_in"] = " ".join(not_handed_in(person, rubric))
        numbers = {}
        if person.is_person:
            points = rubric.of_person(person)
            numbers = {"points": points.earned, "possible": points.total}
            numbers |= {"percent": points.percent, "at_most": points.at_most}
            numbers["unjudged"] = points.unjudged
        for model, result in person.results.items():
            judged = "yes" if result.is_judged else "in part"
            row[f"{model}_file"] = result.path
            row[f"{model}_judged"] = f"no: {result.reason}" if result.reason else judged
            for status in statuses:
                names = [f.check for f in result.findings if f.status == status]
                row[f"{model}_{status}"] = " ".join(names)
            row[f"{model}_look_at_it"] = "; ".join(result.look)
        for model in checks if person.is_person else ():
            of_checks = rubric.of_checks(model, person.results.get(model))
            for check in checks[model]:
                if not of_checks[check].unjudged:
                    numbers[f"{model}.{check}"] = of_checks[check].earned
        writer.writerow({column: csv_cell(text) for column, text in row.items()} | numbers)
    return out.getvalue()


def to_gradescope(people: list[Person], rubric: Rubric, hints: str) -> str:
    """Gradescope's results.json for one submission; what to look at is hidden from the student.

    The possible points are the same for everyone. Those of unjudged checks stand without a score.
    """
    tests = []
    for person in people:
        if person.notes or person.others or person.reason():
            output = "\n".join(map(words, remarks(person, rubric)))
            tests.append({"name": "Files", "output": output, "max_score": 0})
        for model in rubric.models if person.is_person else ():
            result = person.results.get(model)
            if result is None:
                total = rubric.of_model(model, None).total
                test = {"name": TITLES[model], "score": 0, "max_score": total, "status": "failed"}
                tests.append(test | {"output": "not handed in"})
        for result in person.results.values():
            tests += _tests_of(result, rubric, hints)
    score = math.fsum(t.get("score", 0) for t in tests)
    return json.dumps({"score": score, "tests": tests}, indent=1)


def _tests_of(result, rubric, hints):
    title = TITLES[result.model]
    judged = {found.check for found in result.findings}
    points = rubric.of_checks(result.model, result)
    rest = math.fsum(p.total for check, p in points.items() if check not in judged)
    if result.reason or rest:
        output = words(result.reason and f"could not be judged: {result.reason}")
        yield {"name": title, "output": output or "checks that were not run", "max_score": rest}
    if result.look:
        output = "\n".join(map(words, result.look))
        hidden = {"max_score": 0, "visibility": "hidden"}
        yield {"name": f"{title}: look at it", "output": output} | hidden
    for _, same in grouped(result):
        for found in same:
            of_check = rubric.of_check(result.model, found)
            test = {"name": f"{title}: {found.check}", "max_score": of_check.total}
            if found.status != UNJUDGED:
                status = "failed" if found.status in ACCUSING else "passed"
                test |= {"score": of_check.earned, "status": status}
            output = f"{found.status}. {words(explain(found, hints))}".strip()
            yield test | {"output": output}


def gradescope_without_results(reason: str) -> str:
    """Gradescope's results.json of a grading that could not be done: no points, and the reason."""
    return json.dumps({"score": 0, "output": words(reason), "tests": []}, indent=1)
