"""Grade implementations of the assignment: one file, one person's folder, or a folder of people."""

import contextlib
import os
import sys
from pathlib import Path

from grading import report
from grading.discovery import discover
from grading.grader import Memory, grade
from grading.rubric import Rubric, read_rubric
from grading.sandbox import readable
from harness import cli
from harness.errors import UsageError, UserError
from harness.progress import progress_bar


def main(args):
    """Grade what is in args.path and write the reports; exits with 0 if all is judged and right."""
    for file in (args.json, args.csv, args.html, args.gradescope):
        if file is not None:
            _try_to_write(Path(file))
    try:
        people, rubric = _grade(args)
    except (UserError, OSError) as error:
        if args.gradescope is not None:
            _write(args.gradescope, report.gradescope_without_results(str(error)))
        raise
    _write_reports(args, people, rubric)
    results = [result for person in people for result in person.results.values()]
    wrong = sum(result.is_wrong for result in results)
    unjudged = sum(not result.is_judged for result in results)
    unjudged += sum(not person.files for person in people)
    if len(people) > 1:
        print(f"{len(people)} people, {len(results)} files: {wrong} wrong, {unjudged} not judged")
    sys.exit(1 if wrong or unjudged else 0)


def _grade(args):
    """(people with their results, rubric); prints each person as soon as all files are judged."""
    path = Path(os.path.realpath(args.path))
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or folder")
    shown = [folder for folder in readable() if path.is_relative_to(folder)]
    if shown and not args.unsafe:
        raise UsageError(f"{path}: every submission can read {shown[0]}; move the class elsewhere")
    rubric = read_rubric(Path(args.rubric)) if args.rubric else Rubric()
    people = discover(path)
    if not people:
        raise UserError(f"{path}: no file of the assignment in it (a3_vae_template.py, ...)")
    options = {"training": not args.no_training, "seed": args.seed}
    memory = Memory(None if args.fresh else Path(args.memory), **options)
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
    return people, rubric


def _try_to_write(file):
    """Find out before the work whether a report can be written; leaves files as they are."""
    existed = file.exists()
    try:
        if not existed or file.is_file():  # a pipe, such as /dev/stdout, must not be closed
            file.open("ab").close()
    except OSError as error:
        raise UsageError(f"{file}: no report can be written there: {error.strerror}") from error
    if not existed:
        file.unlink()
    if file.is_dir():
        raise UsageError(f"{file}: no report can be written there: it is a folder")


def _write_reports(args, people, rubric):
    """Write all reports; one that can't be written doesn't keep the others from it."""
    reports = {
        args.json: lambda: report.to_json(people, rubric),
        args.csv: lambda: report.to_csv(people, rubric),
        args.html: lambda: report.to_html(people, rubric, args.hints),
        args.gradescope: lambda: report.to_gradescope(people, rubric, args.hints),
    }
    errors = []
    for file, make in reports.items():
        if file is not None:
            try:
                _write(file, make())
            except OSError as error:
                errors.append(f"{file}: {error.strerror}")
    if errors:
        raise UserError("; ".join(errors))


def _write(file, text):
    Path(file).write_text(text, encoding="utf-8")


class _Tolerant:
    """A standard stream that may be missing, closed, full or narrow: what it can't take is lost."""

    def __init__(self, stream):
        self.stream = stream or open(os.devnull, "w")  # noqa: SIM115
        self.stream.reconfigure(errors="backslashreplace")

    def write(self, text):
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(text)
        return len(text)

    def flush(self):
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name):
        return getattr(self.stream, name)


def parse_args(argv=None):
    """The command line."""
    parser = cli.ArgumentParser(__doc__, prog="python -m grading")
    parser.add_argument("path", metavar="PATH", help="a file or a folder of submissions")
    parser.add_argument("--no_training", action="store_true", help="leave out the short trainings")
    parser.add_choice("--hints", report.HINTS, "how much reports say about a finding")
    parser.add_argument("--verbose", action="store_true", help="list what passes, too")
    parser.add_number("--jobs", os.cpu_count() or 1, "people judged at the same time", at_least=1)
    parser.add_number("--time_limit", 120.0, "seconds for a file", above=0)
    parser.add_number("--seed", 0, "seed of the measurements", at_least=0, below=1000)
    parser.add_argument(
        "--fresh", action="store_true", help="neither read nor keep results of other gradings"
    )
    parser.add_argument(
        "--memory",
        metavar="FILE",
        default="runs/grading.jsonl",
        help="where results are kept, so that an interrupted grading goes on",
    )
    parser.add_argument(
        "--unsafe",
        action="store_true",
        help="run submissions without a sandbox: only in a container of its own for each person",
    )
    for flag, words in (
        ("--rubric", "points per check, in TOML"),
        ("--json", "write everything as JSON"),
        ("--csv", "write one row per person"),
        ("--html", "write a page with pictures of samples"),
        ("--gradescope", "write Gradescope's results.json"),
    ):
        parser.add_optional_argument(flag, metavar="FILE", help=words)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.stdout, sys.stderr = _Tolerant(sys.stdout), _Tolerant(sys.stderr)
    cli.run_script(main, parse_args)
