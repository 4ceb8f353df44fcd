"""Every figure of the report and the graded table, from finished runs.

python -m figures                       draw all figures and write a gallery
python -m figures --train --seeds 3     first train what is missing
python -m figures --check               grade every run; exit status 0 only if none falls short
python -m figures --export FILE         write the table of all runs as .csv, .json or .tex, or
                                        with .jsonl the runs, without weights and pictures
python -m figures --recorded FILE       add the runs of such a file to those in --runs
"""

import shlex
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

from datasets import Source, read_mnist
from figures import cluster
from figures.checks import check
from figures.export import export, export_file
from figures.gallery import draw_all, write_page
from figures.kinds import KINDS, NEEDED
from figures.recorded import merged, read_recorded
from figures.report import FIGURES
from figures.runs import (
    Runs,
    StoredRun,
    are_short,
    find_runs,
    newest_of_kind,
    read_run,
    unfinished_message,
)
from figures.strip import last_pictures, save_strip
from figures.trainings import missing_trainings, train
from harness import cli
from harness.devices import n_cores, select_device
from harness.errors import UserError

OF_A_KIND = ("zdim", "protocol", "binarize", "dataset")  # settings in which a kind is itself
# Options of trainings, and their values if they are not given.
OF_TRAININGS = dict.fromkeys(("kinds", "seeds", "data_dir", "jobs", "slurm"))
OF_TRAININGS |= {"dataset": "mnist", "download": False, "device": "auto"}


def parse_args(argv: list[str] | None = None) -> Namespace:
    """The command line."""
    parser = cli.ArgumentParser(__doc__.splitlines()[0], prog="python -m figures")
    parser.add_optional_argument(
        "--runs",
        metavar="DIR",
        help="the folder of the run folders (default: runs, with --quick runs/quick)",
    )
    parser.add_optional_argument(
        "--recorded",
        type=Path,
        metavar="FILE",
        help="add the runs that --export FILE.jsonl wrote to those in --runs (without pictures)",
    )
    parser.add_optional_argument(
        "--out",
        metavar="DIR",
        help="write README.md and report/ here (default: figures in --runs)",
    )
    for name, kind in KINDS.items():
        parser.add_optional_argument(
            f"--{name}", metavar="RUN", help=f"draw this run, not the newest: {kind.title}"
        )
    parser.add_argument(
        "--check",
        action="store_true",
        help="grade every run, draw nothing; exit status 0 if there is one and none falls short",
    )
    parser.add_optional_argument(
        "--export",
        type=export_file,
        metavar="FILE",
        help="write the table of all runs to FILE.csv or FILE.json, the means of each kind as "
        "LaTeX to FILE.tex, or the finished runs for --recorded to FILE.jsonl; draw nothing",
    )
    parser.add_argument("--train", action="store_true", help="train or resume what is missing")
    parser.add_argument("--quick", action="store_true", help="train a fraction of the length")
    parser.add_optional_argument(
        "--seeds",
        type=cli.number(int, at_least=1),
        metavar="N",
        help="train seeds 0 to N - 1 of each kind (default: 1)",
    )
    parser.add_optional_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        metavar="KIND",
        help=f"train these kinds only: {', '.join(KINDS)} (default: all but larochelle)",
    )
    parser.add_optional_argument(
        "--jobs",
        type=cli.number(int, at_least=1),
        metavar="N",
        help="trainings to run side by side (default: all on CUDA, one per core on a CPU). On a "
        "CPU they share the cores. On one GPU their kernels take turns, and overlap only if "
        "NVIDIA's MPS daemon already runs.",
    )
    parser.add_optional_argument(
        "--slurm",
        nargs="*",
        type=cluster.parameter,
        metavar="KEY=VALUE",
        help="submit the trainings to a SLURM cluster, with these parameters of submitit, say "
        "partition=gpu gpus_per_node=1 time=120 (minutes)",
    )
    parser.add_data_arguments()
    parser.add_choice("--device", ("auto", "cuda", "mps", "cpu"), "where to train")
    args = parser.parse_args(argv)
    given = [name for name, default in OF_TRAININGS.items() if getattr(args, name) != default]
    if given and not args.train:
        parser.error(f"--{given[0]} is an option of trainings: it needs --train")
    if args.check and (args.export or args.train):
        parser.error("--check stands alone")
    if args.check and args.recorded and any(vars(args)[name] for name in KINDS):
        parser.error("--check of a named run takes no --recorded")
    if args.recorded and args.runs and not (args.train or Path(args.runs).is_dir()):
        parser.error(f"--runs {args.runs} is no folder")
    if args.out and (args.check or args.export):
        parser.error("--out is the folder of the figures: --check and --export draw none")
    if args.jobs and args.slurm is not None:
        parser.error("--jobs is for this machine; for SLURM there is --slurm array_parallelism=N")
    args.runs = Path(args.runs or ("runs/quick" if args.quick else "runs"))
    args.out = Path(args.out or args.runs / "figures")
    return args


def chosen_run(name: str, folder: str) -> StoredRun:
    """The run in `folder`.

    Raises:
        UserError: it is not a finished run of the kind `name`.
    """
    run, kind = read_run(folder), KINDS[name]
    if run.script != kind.script:
        raise UserError(f"--{name} {folder}: a run of {run.script}, not of {kind.script}")
    for setting in OF_A_KIND:
        actual, wanted = (vars(args).get(setting) for args in (run.args, kind.args()))
        if actual != wanted:
            raise UserError(f"--{name} {folder}: its {setting} is {actual}, not {wanted}")
    if not run.finished:
        raise UserError(f"--{name}: {unfinished_message(run)}")
    return run


def all_runs(args: Namespace, chosen: Iterable[StoredRun] = ()) -> tuple[Runs, list[str]]:
    """All runs under --runs, `chosen` or in --recorded, and messages about unreadable ones.

    Raises:
        UserError: --recorded is no file of runs.
    """
    found, messages = find_runs(args.runs)
    known = {run.folder.resolve() for run in found}
    found += [run for run in chosen if run.folder.resolve() not in known]
    if args.recorded is not None:
        found = merged(found, read_recorded(args.recorded))
    return found, messages


def train_missing(args: Namespace, kind_names: list[str]) -> bool:
    """Train the missing seeds of these kinds, or submit them to SLURM; whether all are there.

    Raises:
        UserError: a training has failed.
        DataError: the download has failed.
    """
    found, _ = all_runs(args)
    missing = missing_trainings(found, kind_names, args.seeds or 1, args.quick, args.dataset)
    if not missing:
        return True
    options = ["--device", args.device]
    options += [] if args.data_dir is None else ["--data_dir", args.data_dir]
    if args.download:  # here, once: trainings side by side would write the same files
        read_mnist(Source.of(args))
    if args.slurm is not None:
        cluster.submit(missing, args.runs, options, dict(args.slurm))
        return False
    side_by_side = {"cuda": len(missing), "cpu": n_cores()}
    n_jobs = args.jobs or side_by_side.get(select_device(args.device).type, 1)
    try:
        train(missing, args.runs, options, n_jobs)
    except KeyboardInterrupt as error:
        error.add_note(f"the runs are in {args.runs}; the same command goes on with them")
        raise
    return True


def main(args: Namespace) -> None:
    """Grade the runs, or draw all figures and write the gallery."""
    for option, folder in (("--runs", args.runs), ("--out", args.out)):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{option} {folder} is a file, not a folder")
    folders = {name: vars(args)[name] for name in KINDS if vars(args)[name] is not None}
    chosen = {name: chosen_run(name, folder) for name, folder in folders.items()}
    if not (args.runs.is_dir() or args.train or args.recorded or chosen):
        raise UserError(f"there is no folder {args.runs}: name that of the runs with --runs")
    if args.check:
        found, messages = (chosen.values(), []) if chosen else all_runs(args)
        sys.exit(check(found, messages))
    if args.train:
        kind_names = [name for name in args.kinds or NEEDED if name not in chosen]
        if not train_missing(args, kind_names):
            return
    found, messages = all_runs(args, chosen.values())
    messages += [unfinished_message(run) for run in found if not run.finished]
    groups = {name: newest_of_kind(found, kind) for name, kind in KINDS.items()}
    groups |= {name: [run] for name, run in chosen.items()}
    if args.export:
        export(args.export, found, groups)
        for message in messages:
            print(message, file=sys.stderr)
        return
    if not any(run.finished for run in found):
        recorded = f" or in {args.recorded}" if args.recorded else ""
        hint = f"no finished run under {args.runs}{recorded}; --train makes what is missing"
        raise UserError("; ".join([*messages, hint]))
    drawn, missing = draw_all(groups, args.out, args.quick)
    if pictures := last_pictures(groups):
        try:
            short = any(are_short(groups[name], KINDS[name]) for name in pictures)
            save_strip(args.out / "report" / f"strip{'-short' * short}.png", pictures)
        except UserError as error:
            missing.append(f"strip: {error}")
    for name in NEEDED:
        wanted = args.dataset == "mnist" and name in (args.kinds or NEEDED)
        if wanted and not groups[name]:
            figures = ", ".join(figure.name for figure in FIGURES if figure.kind == name)
            options = ["--kinds", name, "--runs", str(args.runs), *["--quick"] * args.quick]
            command = shlex.join(["python", "-m", "figures", "--train", *options])
            missing.append(f"{figures}: no finished run; make one with: {command}")
    write_page(args.out, drawn, groups, found, missing, args.quick)
    for message in messages + missing:
        print(message, file=sys.stderr)
    print(f"{len(drawn)} figures in {args.out / 'report'}, the gallery in {args.out / 'README.md'}")
    if missing:
        raise UserError(f"not all figures could be drawn: {len(missing)} reasons above")


if __name__ == "__main__":
    cli.run_script(main, parse_args)
