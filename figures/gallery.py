"""Draws all figures and writes the gallery, the page that shows them with the graded table."""

import textwrap
from pathlib import Path

from figures.departures import departures
from figures.drawing import CURVES
from figures.export import export
from figures.kinds import KINDS
from figures.report import FIGURES, Figure
from figures.runs import Groups, Runs, are_short, with_folder
from figures.tables import PUBLISHED, comparison, graded_table, other_data
from harness.errors import UserError
from harness.files import write_whole

Drawn = list[tuple[Figure, str, str]]  # figures, the names of their files, and captions


def draw_all(groups: Groups, out: Path, quick: bool) -> tuple[Drawn, list[str]]:
    """Draw every figure that has a run into out/report; also returns messages about failures.

    Figures of short runs have names of their own, so they never replace those of full length.
    """
    folder = out / "report"
    folder.mkdir(parents=True, exist_ok=True)
    drawn, messages = [], []
    for figure in FIGURES:
        runs = groups[figure.kind]
        if not runs:
            continue
        if figure.draw not in CURVES:  # a picture of one run
            run = with_folder(runs)
            if run is None:
                hint = f"give a run folder with --{figure.kind} RUN"
                messages.append(f"{figure.name}: recorded runs have no pictures; {hint}")
                continue
            runs = [run]
        length, full = runs[0].n_epochs, KINDS[figure.kind].n_epochs()
        note = f"{'quick run: ' if quick else ''}{length} of {full} epochs"
        note = note if are_short(runs, KINDS[figure.kind]) else None
        name = figure.name + ("-short" if note else "")
        try:
            remark = figure.draw(runs, folder / f"{name}.png", note)
        except UserError as error:
            messages.append(f"{name}: {error}")
        except KeyError as error:
            messages.append(f"{name}: {runs[0].folder} has no {error} in every line of metrics")
        else:
            details = [_describe(runs), note and f"**{note}**", remark]
            caption = f"{figure.caption} ({'; '.join(filter(None, details))})"
            drawn.append((figure, name, f"**Figure {figure.number}.** {caption}"))
    return drawn, messages


def _describe(runs: Runs) -> str:
    names = ", ".join(f"`{run.folder.name}`" for run in runs)
    seeds = ", ".join(str(run.args.seed) for run in runs)
    hardware = [run.config.get("device", "hardware not recorded") for run in runs]
    details = f"{runs[0].length}, {', '.join(dict.fromkeys(hardware))}"
    if len(runs) == 1:
        return f"run {names}, seed {seeds}, {details}"
    return f"runs {names}, seeds {seeds}: mean and a band of one standard deviation, {details}"


def write_page(
    out: Path, drawn: Drawn, groups: Groups, found: Runs, missing: list[str], quick: bool
) -> None:
    """Write the gallery to out/README.md, with messages about what is `missing`, and its tables."""
    lines = ["# Gallery" + (": a quick run, a small fraction of the full length" if quick else "")]
    command = "python -m figures" + (" --train --quick" if quick else "")
    lines += ["", f"The figures of the report, drawn by `{command}`, which also wrote this page."]
    if missing:
        lines += ["", "Not here yet:", "", *(f"- {message}" for message in missing)]
    if table := graded_table(groups):
        lines += ["", "## Graded", "", *table, "", _save_tables(out, groups, found)]
        lines += ["", "Published values to compare with:", "", *(f"- {text}" for text in PUBLISHED)]
    if others := other_data(found, groups):
        lines += ["", "## Other data sets", "", *others]
    if compared := comparison(groups):
        lines += ["", "## The three models' samples", "", *compared]
    lines += ["", "## Figures"] if drawn else []
    for figure, name, caption in drawn:
        lines += ["", f"![{figure.caption}](report/{name}.png)", "", caption]
    lines += ["", "## Where this project departs from the report"]
    lines += ["", "The numbers of several seeds are means.", "", *departures(groups), ""]
    content = "\n".join(map(_wrapped, lines)).encode()
    write_whole(out / "README.md", lambda file: file.write(content))


def _save_tables(out: Path, groups: Groups, found: Runs) -> str:
    """Write the table of all finished runs and that of their means; the line that links them.

    Those of short runs have names of their own, like figures.
    """
    short = any(are_short(runs, KINDS[kind]) for kind, runs in groups.items())
    name = "report/results" + "-short" * short
    finished = [run for run in found if run.finished]
    for suffix in (".csv", ".tex"):
        export(out / f"{name}{suffix}", finished, groups)
    return f"As files: [every finished run]({name}.csv) as CSV, [the means]({name}.tex) as LaTeX."


def _wrapped(line: str) -> str:
    """A paragraph or list item in lines of at most 100 columns; tables and pictures as they are."""
    if line.startswith(("|", "!", "#")):
        return line
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(
        line, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
