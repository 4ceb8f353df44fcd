"""Draws all figures and writes the gallery, the page that shows them with the graded table."""

import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

from figures import recipes, sweeps
from figures.departures import departures
from figures.drawing import curves
from figures.export import export
from figures.kinds import KINDS
from figures.report import Figure
from figures.runs import Groups, Runs, are_short, with_folder
from figures.strip import PANELS, panels_of, save_strip
from figures.tables import (
    LINE_HEADER,
    comparison,
    graded_lines,
    graded_table,
    markdown,
    other_data,
    other_groups,
    published,
)
from harness.errors import UserError
from harness.escape import markdown_cell, markdown_code
from harness.files import write_whole

# How the page begins, by which an earlier one is known.
START = r"# Gallery[^\n]*\n\nThe figures of the report, drawn by `python -m figures draw"
Drawn = list[tuple[Figure, str, str]]  # figures, the names of their files, and captions


def draw_figures(
    figures: Iterable[Figure], groups: Groups, folder: Path, quick: bool
) -> tuple[Drawn, list[str]]:
    """Draw every figure that has a run into `folder`; also returns messages about failures.

    Figures of short runs have names of their own, so they never replace those of full length.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn, messages = [], []
    for figure in figures:
        runs, kind = groups[figure.kind], KINDS[figure.kind]
        if not runs:
            continue
        if figure.draw is not curves:  # a picture of one run
            run = with_folder(runs)
            if run is None:
                hint = f"give a run folder with --{figure.kind} RUN"
                messages.append(f"{figure.name}: recorded runs have no pictures; {hint}")
                continue
            runs = [run]
        name, note = figure.name, None
        if are_short(runs, kind):
            name += "-short"
            note = f"{'quick run: ' * quick}{runs[0].n_epochs} of {kind.n_epochs()} epochs"
        try:
            remark = figure.draw(runs, folder / f"{name}.png", note)
        except UserError as error:
            messages.append(f"{name}: {error}")
        else:
            details = [_describe(runs), note and f"**{note}**", remark]
            caption = f"{figure.caption} ({'; '.join(filter(None, details))})"
            drawn.append((figure, name, f"**Figure {figure.number}.** {caption}"))
    return drawn, messages


def _names(runs: Runs) -> str:
    return ", ".join(markdown_code(run.folder.name) for run in runs)


def _describe(runs: Runs) -> str:
    names = _names(runs)
    seeds = ", ".join(str(run.seed) for run in runs)
    hardware = [run.config.get("device") or "hardware not recorded" for run in runs]
    details = f"{runs[0].length}, {', '.join(dict.fromkeys(map(markdown_cell, hardware)))}"
    if len(runs) == 1:
        return f"run {names}, seed {seeds}, {details}"
    return f"runs {names}, seeds {seeds}: mean and min-max band, {details}"


def draw_strip(groups: Groups, folder: Path) -> None:
    """Draw the strip of README into `folder` if each of its models has a run with pictures.

    Raises:
        UserError: the arrays of a run are damaged.
    """
    panels = panels_of(groups)
    if panels is not None:
        short = any(are_short(groups[kind], KINDS[kind]) for kind in PANELS)
        save_strip(folder / f"strip{'-short' * short}.png", panels)


def write_page(
    out: Path, drawn: Drawn, groups: Groups, found: Runs, missing: list[str], quick: bool
) -> None:
    """Write the gallery to out/README.md, with messages about what is `missing`, and its tables."""
    command = f"python -m figures draw{' --quick' * quick}"
    blocks = [  # of lines; a blank line stands between two blocks
        ["# Gallery" + ": a quick run, a small fraction of the full length" * quick],
        [
            f"The figures of the report, drawn by `{command}`, which also wrote this page. Their "
            "numbers are the report's; its Figure 1 is a borrowed diagram."
        ],
    ]
    if missing:
        blocks += [["Not here yet:"], [f"- {markdown_cell(message)}" for message in missing]]
    if table := graded_table(groups):
        blocks += [["## Graded"], table, [_save_tables(out, groups, found)]]
        blocks += [["Published values to compare with:"], published()]
    if lines := graded_lines(other_groups(found, groups)):
        blocks += [["## Other runs"], markdown(LINE_HEADER, lines)]
    if others := other_data(found, groups):
        blocks += [["## Other data sets"], others]
    if compared := comparison(groups):
        blocks += [["## The three models' samples"], compared]
    if not quick:
        blocks += [
            [f"## {recipes.HEADING}"],
            [recipes.WHY],
            [recipes.CURE],
            [recipes.OF_THE_VAE],
            [recipes.WHAT],
        ]
        blocks += [[f"![Recipes tried for the flow](report/{recipes.PICTURE})"]]
        blocks += [recipes.recipe_table()]
    if swept := sweeps.dimensions(found):
        (out / "report").mkdir(parents=True, exist_ok=True)
        sweeps.draw(out / "report" / "sweep_zdim.png", swept, "zdim", sweeps.DIMENSIONS)
        title = "VAEs that differ in their latent dimensions alone"
        blocks += [["## How many latent dimensions?"], markdown(*sweeps.dimensions_table(swept))]
        blocks += [[f"![{title}](report/sweep_zdim.png)"]]
        blocks += [[f"{title}: mean and min-max band over seeds ({_names(swept)})."]]
    if drawn:
        blocks.append(["## Figures"])
    for figure, name, caption in drawn:
        blocks += [[f"![{figure.caption}](report/{name}.png)"], [caption]]
    blocks.append(["## Where this project departs from the report"])
    blocks += [["The numbers of several seeds are means."], departures(groups)]
    page = "\n\n".join("\n".join(map(_wrapped, block)) for block in blocks) + "\n"
    write_whole(out / "README.md", lambda file: file.write(page.encode(errors="backslashreplace")))


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
    """A paragraph or list item in lines of at most 100 columns; tables and pictures as they are.

    No line is broken where the rest would begin a heading, a list or the like.
    """
    if line.startswith(("|", "!", "#")):
        return line
    indent = "  " if line.startswith("- ") else ""
    text = textwrap.fill(
        line, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return re.sub(r"\n *(?=[#>|<+=~-]|\d+[.)] )", " ", text)
