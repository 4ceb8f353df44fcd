"""Every figure of the report and the graded table, from finished runs.

python -m figures             draw all figures and write the gallery, figures/README.md
python -m figures --train     first train what is missing
python -m figures --check     grade every run; exit status 0 only if nothing falls short
"""

import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

from figures.gallery import draw_all, write_page
from figures.kinds import KINDS
from figures.report import FIGURES
from figures.runs import StoredRun, find_runs, newest_of_kind, read_run, unfinished_message
from figures.strip import last_pictures, save_strip
from figures.trainings import train
from harness import cli, graded
from harness.devices import n_cores, select_device
from harness.errors import UserError

HERE = Path(__file__).parent
WANTED = [name for name, kind in KINDS.items() if not kind.optional]


def parse_args(argv: list[str] | None = None) -> Namespace:
    """The command line."""
    parser = cli.ArgumentParser(__doc__.splitlines()[0], prog="python -m figures")
    parser.add_optional_argument(
        "--runs",
        metavar="DIR",
        help="the folder of the run folders (default: runs, with --quick runs/quick)",
    )
    parser.add_optional_argument(
        "--out",
        metavar="DIR",
        help="write README.md and report/ here (default: figures, with --quick figures in --runs)",
    )
    for name, kind in KINDS.items():
        parser.add_optional_argument(
            f"--{name}", metavar="RUN", help=f"draw this run, not the newest: {kind.title}"
        )
    parser.add_argument("--train", action="store_true", help="train or resume what is missing")
    parser.add_argument("--quick", action="store_true", help="train a fraction of the length")
    parser.add_optional_argument(
        "--jobs",
        type=cli.number(int, at_least=1),
        metavar="N",
        help="trainings to run side by side (default: all on CUDA, one per core on a CPU). On a "
        "CPU they share the cores. On one GPU their kernels take turns, and overlap only if "
        "NVIDIA's MPS daemon already runs.",
    )
    parser.add_choice("--device", ("auto", "cuda", "mps", "cpu"), "where to train")
    parser.add_argument("--check", action="store_true", help="grade every run, draw nothing")
    args = parser.parse_args(argv)
    if not args.train and (args.jobs is not None or args.device != "auto"):
        parser.error("--jobs and --device are options of trainings: they need --train")
    args.runs = Path(args.runs or ("runs/quick" if args.quick else "runs"))
    args.out = Path(args.out or (args.runs / "figures" if args.quick else HERE))
    return args


def chosen_run(name: str, folder: str) -> StoredRun:
    """The run in `folder`.

    Raises:
        UserError: it is not a finished run of the kind `name`.
    """
    run, kind = read_run(folder), KINDS[name]
    if run.script != kind.script:
        raise UserError(f"--{name} {folder}: a run of {run.script}, not of {kind.script}")
    for setting in ("zdim", "protocol"):
        actual, wanted = (vars(args).get(setting) for args in (run.args, kind.args()))
        if actual != wanted:
            raise UserError(f"--{name} {folder}: its {setting} is {actual}, not {wanted}")
    if not run.finished:
        raise UserError(f"--{name}: {unfinished_message(run)}")
    return run


def check(found: Iterable[StoredRun], messages: list[str]) -> int:
    """Print every run's graded table; returns exit status 0 only if nothing falls short."""
    verdicts = []
    for run in found:
        unfinished = "" if run.finished else ", unfinished"
        print(f"{run.folder}: {run.script}, seed {run.args.seed}, {run.length}{unfinished}")
        rows = run.graded()
        print(f"{graded.table(rows, run.counter)}\n")
        verdicts += [row["verdict"] for row in rows]
    for message in messages:
        print(message, file=sys.stderr)
    counts = {
        verdict: verdicts.count(verdict)
        for verdict in ("pass", "falls short", "not reached", "not comparable")
    }
    print(", ".join(f"{verdict}: {count}" for verdict, count in counts.items()))
    if not counts["pass"] + counts["falls short"]:
        raise UserError("nothing could be graded")
    return 1 if counts["falls short"] or messages else 0


def train_missing(args: Namespace, names: list[str]) -> None:
    """Train the kinds in `names` that have no run of full (with --quick: quick) length."""
    found, _ = find_runs(args.runs)
    missing = []
    for name in names:
        newest = newest_of_kind(found, KINDS[name])[:1]
        if not any(run.n_epochs >= KINDS[name].n_epochs(args.quick) for run in newest):
            missing.append(name)
    side_by_side = {"cuda": len(missing), "cpu": n_cores()}
    n_jobs = args.jobs or side_by_side.get(select_device(args.device).type, 1)
    train(missing, found, args.runs, args.quick, args.device, n_jobs)


def main(args: Namespace) -> None:
    """Grade the runs, or draw all figures and write the gallery."""
    folders = {name: vars(args)[name] for name in KINDS if vars(args)[name] is not None}
    chosen = {name: chosen_run(name, folder) for name, folder in folders.items()}
    if not args.runs.is_dir() and not args.train and not chosen:
        raise UserError(f"there is no folder {args.runs}: name that of the runs with --runs")
    if args.check:
        found, messages = (chosen.values(), []) if chosen else find_runs(args.runs)
        sys.exit(check(found, messages))
    if args.train:
        train_missing(args, [name for name in WANTED if name not in chosen])
    found, messages = find_runs(args.runs)
    messages += [unfinished_message(run) for run in found if not run.finished]
    groups = {name: newest_of_kind(found, kind) for name, kind in KINDS.items()}
    groups |= {name: [run] for name, run in chosen.items()}
    if not any(groups.values()):
        hint = f"no finished run under {args.runs}; --train makes what is missing"
        raise UserError("; ".join([*messages, hint]))
    drawn, missing = draw_all(groups, args.out, args.quick)
    if pictures := last_pictures(groups):
        try:
            save_strip(args.out / "report" / "strip.png", pictures)
        except UserError as error:
            missing.append(f"strip: {error}")
    for name in WANTED:
        if not groups[name]:
            figures = ", ".join(figure.name for figure in FIGURES if figure.kind == name)
            command = KINDS[name].command()
            missing.append(f"{figures}: no finished run; make one with: {command}")
    write_page(args.out, drawn, groups, missing, args.quick)
    for message in messages + missing:
        print(message, file=sys.stderr)
    print(f"{len(drawn)} figures in {args.out / 'report'}, the gallery in {args.out / 'README.md'}")
    if missing:
        raise UserError(f"not all figures could be drawn: {len(missing)} reasons above")


if __name__ == "__main__":
    cli.run_script(main, parse_args)
