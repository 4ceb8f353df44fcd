"""Grade implementations of the assignment: one file, one person's folder, or a folder of people."""

import contextlib
import math
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from grading import page, report
from grading.discovery import discover
from grading.grader import Memory, grade
from grading.inputs import Unreadable
from grading.rubric import Rubric, default_rubric, read_rubric
from grading.sandbox import readable
from harness import cli
from harness.devices import n_cores
from harness.errors import UsageError, UserError
from harness.files import may_replace, write_whole
from harness.progress import progress_bar


@dataclass
class Command:
    """Grade implementations of the assignment: one file, one person's folder, or people's folders.

    Example: python -m grading class --jobs 2 --csv class.csv --html report.html
    """

    path: tyro.conf.Positional[Path | None] = None  # a file, an archive or a folder of submissions
    training: bool = True  # train each model for some steps
    hints: Literal[*report.HINTS] = report.HINTS[0]  # how much reports say about a finding
    verbose: bool = False  # list what passes, too
    jobs: int = n_cores()  # people judged at the same time
    # seconds of processor time for a file; it is also stopped after 5 times as many of any time
    time_limit: float = 120.0
    seed: int = 0  # seed of the measurements
    fresh: bool = False  # neither read nor keep results of other gradings
    # where results are kept, so that an interrupted grading resumes
    memory: Path = Path("runs/grading.jsonl")
    # run submissions without a sandbox: only in a container of its own for each person
    unsafe: bool = False

    rubric: Path | None = None  # points per check, in TOML
    print_rubric: bool = False  # print the default one and end
    json: Path | None = None  # write everything as JSON
    csv: Path | None = None  # write one row per person
    # write a page with pictures of samples; DIR/ writes a page per person, and an index
    html: str | None = None
    gradescope: Path | None = None  # write Gradescope's results.json

    def __post_init__(self):
        if self.path is None and not self.print_rubric:
            raise ValueError("PATH is missing: a file, an archive or a folder of submissions")
        if self.jobs < 1:
            raise ValueError(f"--jobs must be at least 1, not {self.jobs}")
        if not 0 < self.time_limit < math.inf:
            raise ValueError(f"--time_limit must be a positive number, not {self.time_limit}")
        if not 0 <= self.seed < 1000:
            raise ValueError(f"--seed must be at least 0 and below 1000, not {self.seed}")
        reports = (self.json, self.csv, self.gradescope, self.html)
        files = [os.path.realpath(file) for file in reports if file]
        files = [f for f in files if os.path.isfile(f) or not os.path.exists(f)]  # pipes take all
        if len(set(files)) < len(files):
            raise ValueError("two reports have the same file: give each its own")


def parse(words: list[str] | None = None) -> Command:
    """The command of a command line; None is sys.argv's."""
    return cli.parse(Command, words, "python -m grading")


def main(args: Command) -> None:
    """Grade what is in args.path and write the reports; README lists the exit statuses."""
    if args.print_rubric:
        print(default_rubric(), end="")
        return
    starts = (
        (args.json, report.JSON_START),
        (args.csv, report.CSV_START),
        (args.gradescope, report.GRADESCOPE_START),
    )
    for file, start in starts:
        if file is not None:
            _try_to_write(file, start)
    if args.html is not None:
        _try_html(args.html)
    try:
        people, rubric = _grade(args)
    except (UserError, OSError) as error:
        if args.gradescope is not None:
            _write(args.gradescope, report.gradescope_without_results(str(error)))
        raise
    _write_reports(args, people, rubric)
    everyone = [person for person in people if person.is_person]
    results = [result for person in everyone for result in person.results.values()]
    wrong = sum(result.is_wrong for result in results)
    unjudged = sum(not result.is_judged for result in results)
    without = sum(not person.files for person in everyone)
    unread = sum(bool(person.notes) for person in people if not person.is_person)
    if len(everyone) > 1:
        files = "1 file" if len(results) == 1 else f"{len(results)} files"
        who = "1 person" if without == 1 else f"{without} people"
        nothing = f", {who} without a file of the assignment" if without else ""
        counts = f"{files}: {wrong} wrong, {unjudged} not judged{nothing}"
        print(f"{len(everyone)} people, {counts}")
        if left := report.by_hand(people, rubric):
            print(left)
    sys.exit(1 if wrong or unjudged or without or unread else 0)


def _grade(args):
    """(people with their results, rubric); prints people in the order of their folders."""
    path = Path(os.path.realpath(args.path))
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or folder")
    shown = [folder for folder in readable() if path.is_relative_to(folder)]
    if shown and not args.unsafe:
        raise UsageError(f"{path}: every submission can read {shown[0]}; move the class elsewhere")
    rubric = read_rubric(args.rubric) if args.rubric else Rubric()
    if not args.training:
        rubric.without_training()
    with tempfile.TemporaryDirectory(prefix="grading-") as scratch:
        try:
            people = discover(path, Path(scratch))
        except Unreadable as reason:
            raise UserError(f"{path}: {reason}") from reason
        if not any(person.is_person for person in people):
            raise UserError(f"{path}: no file of the assignment in it (a3_vae_template.py, ...)")
        _judge(args, people, rubric)
    return people, rubric


def _judge(args, people, rubric):
    options = {"training": args.training, "seed": args.seed}
    memory = Memory(None if args.fresh else args.memory, **options)
    if args.unsafe:
        print("grading: --unsafe: submissions run with your rights", file=sys.stderr)
    n_files = sum(len(person.files) for person in people)
    with (
        progress_bar(n_files, unit="file", disable=n_files < 4 or None) as bar,
        contextlib.closing(
            grade(
                people,
                memory,
                args.jobs,
                args.time_limit,
                **options,
                on_result=lambda _: bar.update(),
                unsafe=args.unsafe,
            )
        ) as steps,
    ):
        for person in steps:
            bar.clear()
            print(report.terminal(person, rubric, args.hints, args.verbose), flush=True)


def _try_to_write(file, start):
    """Find out before the work whether a report can be written; leaves files as they are."""
    if file.is_dir():
        raise UsageError(f"{file}: no report can be written there: it is a folder")
    existed = file.exists()
    if (file.is_file() or not existed) and not may_replace(file, start):
        raise UsageError(f"{file} is there and is none of this grader's: name another file")
    try:
        if not existed or file.is_file():  # a pipe, such as /dev/stdout, must not be closed
            file.open("ab").close()
    except OSError as error:
        raise UsageError(f"{file}: no report can be written there: {error.strerror}") from error
    if not existed:
        file.unlink()


def _try_html(html):
    """Find out whether the page, or the folder of pages, can be written."""
    if not _is_folder(html):
        _try_to_write(Path(html), page.START)
        return
    index = Path(html) / "index.html"
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{html}: no report can be written there: {error.strerror}") from error
    _try_to_write(index, page.START)


def _is_folder(html):
    return html.endswith("/") or Path(html).is_dir()


def _write_reports(args, people, rubric):
    """Write all reports; one that can't be written doesn't keep the others from it."""
    reports = [
        (args.json, lambda: report.to_json(people, rubric)),
        (args.csv, lambda: report.to_csv(people, rubric)),
        (args.gradescope, lambda: report.to_gradescope(people, rubric, args.hints)),
    ]
    if args.html is not None and _is_folder(args.html):
        pages = page.to_pages(people, rubric, args.hints)
        reports += [(Path(args.html) / name, lambda t=text: t) for name, text in pages.items()]
    elif args.html is not None:
        reports.append((Path(args.html), lambda: page.to_html(people, rubric, args.hints)))
    errors = []
    for file, make in reports:
        if file is not None:
            try:
                _write(file, make())
            except OSError as error:
                errors.append(f"{file}: {error.strerror}")
    if errors:
        raise UserError("; ".join(errors))


def _write(file, text):
    """Write a report whole; an earlier one stays until then."""
    if file.exists() and not file.is_file():  # a pipe, such as /dev/stdout
        file.write_text(text, encoding="utf-8")
    else:
        write_whole(file.resolve(), lambda stream: stream.write(text.encode()))


if __name__ == "__main__":
    cli.run(main, parse)
