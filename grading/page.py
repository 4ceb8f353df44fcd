"""Reports as HTML: a page of everyone, or a page for each person and an index of the class."""

import hashlib
import html
import re
import sys
import unicodedata

from gencheck.outcomes import NOTE, OLD, PASS, STATUSES, UNJUDGED, WEAK, WRONG
from grading.code_files import MODELS, TITLES
from grading.discovery import Person
from grading.pictures import N_SIDE
from grading.report import explain, grouped, remarks, summary
from grading.results import FileResult
from grading.rubric import Rubric
from harness.escape import html_cell, words

HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="generator" content="grading">'
)
START = re.escape(HEAD)  # of our own pages, which may be overwritten
MEANINGS = {
    WRONG: "the mathematics is wrong, or the code does not run",
    WEAK: "harmless at the usual sizes, yet not what is meant",
    OLD: "right, but today's libraries refuse it",
    UNJUDGED: "could not be judged; somebody has to look",
    NOTE: "a choice worth knowing; it costs nothing",
    PASS: "right",
}
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;width:100%}td,th{padding:.3em .6em;text-align:left;
border-bottom:1px solid #ddd;vertical-align:top;overflow-wrap:anywhere}.wrong{color:#b00020}
.weak{color:#b36b00}.old{color:#6a4fb3}.unjudged{color:#555}.note{color:#005a9c}.pass{color:#1b7a2f}
img{image-rendering:pixelated;width:280px;max-width:100%;border:1px solid #ddd}figure{margin:1em 0}
figcaption{color:#555}[title]{text-decoration:underline dotted;cursor:help}td.n{white-space:nowrap}
@media(max-width:40em){td,th{padding:.3em .2em}}"""


def to_html(people: list[Person], rubric: Rubric, hints: str) -> str:
    """A self-contained page of everyone."""
    parts = [part for person in people for part in _person(person, rubric, hints)]
    return _page("Grading", [*parts, *_legend()])


def to_pages(people: list[Person], rubric: Rubric, hints: str) -> dict[str, str]:
    """Pages by file name: index.html, and one for each person."""
    pages, rows = {}, []
    for person in people:
        name = file_name(person.name)
        body = ['<p><a href="index.html">all</a></p>', *_person(person, rubric, hints), *_legend()]
        pages[name] = _page(html.escape(words(person.name)), body)
        link = f'<a href="{name}">{html_cell(person.name)}</a>'
        points = rubric.of_person(person) if person.is_person else None
        cells = [f"{points.percent:g}%", str(points)] if points else ["", ""]
        for model in MODELS:
            result = person.results.get(model)
            cells.append(html_cell(summary(result)) if result is not None else "")
        rows.append(f"<tr><td>{link}" + "".join(f"<td>{cell}" for cell in cells) + "</tr>")
    heads = "".join(f"<th>{head}" for head in ("name", "", "points", *TITLES.values()))
    table = ["<h1>Grading</h1>", f"<table><tr>{heads}</tr>", *rows, "</table>"]
    return {"index.html": _page("Grading", [*table, *_legend()])} | pages


def file_name(name: str) -> str:
    """A file name for a person's page: safe, and another one for each name."""
    encoding = sys.getfilesystemencoding()  # the locale may lack some of the letters
    text = unicodedata.normalize("NFC", name).encode(encoding, "replace").decode(encoding)
    # Letters, their marks, and digits of any script
    kept = (c if c in ".-" or unicodedata.category(c)[0] in "LMN" else "_" for c in text)
    plain = re.sub("_+", "_", "".join(kept))[:60].strip("._") or "person"
    return f"{plain}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}.html"


def _page(title, parts):
    head = f'{HEAD}<meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{title}</title><style>{STYLE}</style></head><body>"
    return "\n".join([head, *parts, "</body></html>"])


def _legend():
    yield "<h2>What the words mean</h2><table>"
    for status in STATUSES:
        yield f'<tr><td class="{status}">{status}<td>{MEANINGS[status]}</tr>'
    yield "</table>"


def _person(person, rubric, hints):
    points = f"<p>{rubric.of_person(person)}</p>" if person.is_person else ""
    yield f"<h1>{html_cell(person.name)}</h1>{points}"
    for line in remarks(person, rubric):
        yield f"<p>{html_cell(line)}</p>"
    for model in MODELS:
        if model in person.results:
            yield from _file(person.results[model], rubric, hints)


def _file(result: FileResult, rubric: Rubric, hints: str):
    title, points = TITLES[result.model], rubric.of_model(result.model, result)
    yield f"<h2>{title}: {html_cell(result.path)}</h2>"
    yield f"<p>{points}. {html_cell(summary(result))}</p>"
    for line in result.look:
        yield f"<p>look at it: {html_cell(line)}</p>"
    if result.picture:
        source = f"data:image/png;base64,{html.escape(result.picture)}"
        steps = f"after {result.steps} steps" if result.steps else "before training"
        caption = f"{N_SIDE * N_SIDE} samples {steps}"
        yield f'<figure><img alt="{caption}" src="{source}"><figcaption>{caption}</figcaption>'
        yield "</figure>"
    if not result.findings:
        return
    yield "<table><tr><th>status<th>check<th>points<th>what was found<th>why it matters</tr>"
    for status, same in grouped(result):
        names = ", ".join(
            f'<span title="{html.escape(f.why, quote=True)}">{html.escape(f.check)}</span>'
            for f in same
        )
        of_checks = [rubric.of_check(result.model, found) for found in same]
        total = sum(p.total for p in of_checks)
        earned = "–" if status == UNJUDGED else f"{sum(p.earned for p in of_checks):g}"
        why = same[0].why if hints == "full" and len(same) == 1 else ""
        if why and same[0].reference:
            why += f" ({same[0].reference})"
        texts = "".join(f"<td>{html_cell(cell)}" for cell in (explain(same[0], hints), why))
        hover = f'<span title="{MEANINGS[status]}">{status}</span>'
        row = f'<td class="{status}">{hover}<td>{names}<td class="n">{earned} of {total:g}{texts}'
        yield f"<tr>{row}</tr>"
    yield "</table>"
