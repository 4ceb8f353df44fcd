"""Grade implementations of the assignment: one file, one person's folder, or a folder of people."""

import os
import sys
from pathlib import Path

from grading import report
from grading.grader import Memory, discover, grade
from grading.rubric import Rubric, read_rubric
from harness import cli
from harness.errors import UsageError, UserError
from harness.progress import progress_bar


def main(args):
    """Grade what is in args.path and write the reports; exits with 0 if all is judged and right."""
    path = Path(args.path).resolve()
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or folder")
    for file in (args.json, args.csv, args.html, args.gradescope):
        if file is not None and (Path(file).is_dir() or not Path(file).absolute().parent.is_dir()):
            raise UsageError(f"{file}: no report can be written there")
    rubric = read_rubric(Path(args.rubric)) if args.rubric else Rubric()
    people = discover(path)
    if not people:
        raise UserError(f"{path}: no file of the assignment in it (a3_vae_template.py, ...)")
    options = {"training": not args.no_training, "seed": args.seed}
    memory = Memory(None if args.fresh else Path(args.memory), **options)
    n_files = sum(len(person.files) for person in people)
    finished = []
    with progress_bar(n_files, unit="file", disable=n_files < 4 or None) as bar:
        steps = grade(
            people, memory, args.jobs, args.time_limit, **options, on_result=lambda _: bar.update()
        )
        for person in steps:
            finished.append(person)
            bar.clear()
            print(report.terminal(person, rubric, args.hints, args.verbose), flush=True)
    _write_reports(args, people, rubric)
    results = [result for person in people for result in person.results.values()]
    missing = sorted({limit for result in results for limit in result.not_enforced})
    if missing:
        print(f"not enforced on this system: {', '.join(missing)}", file=sys.stderr)
    wrong = sum(result.is_wrong for result in results)
    unjudged = sum(not result.is_judged for result in results)
    if len(people) > 1:
        print(f"{len(people)} people, {n_files} files: {wrong} wrong, {unjudged} not judged")
    sys.exit(1 if wrong or unjudged else 0)


def _write_reports(args, people, rubric):
    reports = {
        args.json: lambda: report.to_json(people, rubric),
        args.csv: lambda: report.to_csv(people, rubric),
        args.html: lambda: report.to_html(people, rubric, args.hints),
        args.gradescope: lambda: report.to_gradescope(people, rubric, args.hints),
    }
    for file, make in reports.items():
        if file is not None:
            Path(file).write_text(make(), encoding="utf-8")


def parse_args(argv=None):
    """The command line."""
    parser = cli.ArgumentParser(__doc__, prog="python -m grading")
    parser.add_argument("path", metavar="PATH", help="a file or a folder of submissions")
    parser.add_argument("--no_training", action="store_true", help="leave out the short trainings")
    parser.add_choice("--hints", report.HINTS, "how much reports say about a finding")
    parser.add_argument("--verbose", action="store_true", help="list what passes, too")
    parser.add_number("--jobs", os.cpu_count() or 1, "files judged at the same time", at_least=1)
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
    cli.run_script(main, parse_args)
