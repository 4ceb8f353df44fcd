"""Finding, reading and choosing runs."""

import shlex
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

from figures.kinds import GAN, NF, SCRIPTS, VAE, Kind, epochs_of
from harness import cli, records
from harness.errors import UserError
from harness.files import is_locked

# Each script logs one metric that the others don't.
MARKS = {"val_neg_elbo_nats": VAE, "g_loss": GAN, "val_bpd": NF}
# Arguments that leave the training as it is, and the seed.
NOT_OF_TRAINING = {"seed", "out", *cli.NO_SETTINGS, *cli.MAY_DIFFER}


class StoredRun(NamedTuple):
    """A run as its files describe it.

    An unfinished run has no `results`, and perhaps no line of metrics yet. Without a `config.json`
    a run has default arguments and counts as finished. A `recorded` one has no folder, only a name.
    """

    folder: Path
    script: str
    args: Namespace
    history: list[dict]
    results: dict[str, dict]
    config: dict
    finished: bool
    recorded: bool = False

    @property
    def n_epochs(self) -> int:
        """The epochs it was started for."""
        return epochs_of(self.args)

    @property
    def counter(self) -> str:
        """'epoch' or 'batch'."""
        return "batch" if self.script == GAN else "epoch"

    @property
    def count(self) -> int:
        """Epochs or batches done."""
        return records.count_of(self.history)

    @property
    def length(self) -> str:
        """Epochs or batches done, in words."""
        return self.in_words(self.count)

    def in_words(self, count: int) -> str:
        """'1 epoch', '40 epochs' or '187,500 batches'."""
        plural = {"epoch": "epochs", "batch": "batches"}[self.counter]
        return f"{count:,} {self.counter if count == 1 else plural}"

    @property
    def dataset(self) -> str:
        """The data set it was trained on."""
        return self.args.dataset

    @property
    def started(self) -> str:
        """The date and time of its start, '' if unknown."""
        return str(self.config.get("started", ""))

    @property
    def seconds(self) -> float:
        """Seconds of training, without the evaluation at the end."""
        return sum(line.get("seconds", 0.0) for line in self.history)

    @property
    def can_go_on(self) -> bool:
        """Whether it is unfinished and has a checkpoint."""
        return not self.finished and any(self.folder.glob("checkpoint*.pt"))

    def graded(self) -> list[dict]:
        """The graded rows, from its files alone."""
        return SCRIPTS[self.script].grade(self.args, self.history, self.results)


Runs = list[StoredRun]  # in figures and tables: runs that differ only in their seed
Groups = dict[str, Runs]  # by kind


def read_run(folder: Path | str) -> StoredRun:
    """Read a run folder, with or without a `config.json`.

    Raises:
        UserError: a file is missing or damaged, or no script of this project wrote it.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UserError(f"{folder} is a file, not a run folder")
    foreign = not (folder / "config.json").exists() and (folder / "metrics.jsonl").exists()
    config = {} if foreign else records.read_config(folder)
    started = foreign or (folder / "metrics.jsonl").exists()
    history = records.read_metrics(folder) if started else []
    finished = foreign or (folder / "result.json").exists()
    if history or finished:
        keys = history[0] if history else ()
        script = next((script for key, script in MARKS.items() if key in keys), None)
    else:
        script = config["script"]
    if script not in SCRIPTS or not foreign and config["script"] != script:
        whose = config.get("script", "a script of this project")
        raise UserError(f"{folder}: metrics.jsonl holds no metrics of {whose}")
    parse_args = SCRIPTS[script].parse_args
    args = parse_args([]) if foreign else cli.settings_of(folder, script, parse_args)
    results = records.read_results(folder)
    run = StoredRun(folder, script, args, history, results, config, finished)
    try:
        run.graded()
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{folder}: a value is missing from its metrics: {error}") from error
    return run


def find_runs(base: Path) -> tuple[Runs, list[str]]:
    """All readable runs under `base`, oldest first, and messages about the others."""
    found, messages = [], []
    files = {*base.rglob("metrics.jsonl"), *base.rglob("config.json")}
    for folder in sorted({file.parent for file in files}):
        try:
            found.append(read_run(folder))
        except UserError as error:
            messages.append(str(error))
    found.sort(key=lambda run: run.started)
    return found, messages


def with_folder(runs: Runs) -> StoredRun | None:
    """The first of the runs that has a folder, and so pictures."""
    return next((run for run in runs if not run.recorded), None)


def are_short(runs: Runs, kind: Kind) -> bool:
    """Whether these runs of a kind are shorter than the report's; no runs are not."""
    return bool(runs) and runs[0].n_epochs < kind.n_epochs()


def unfinished_message(run: StoredRun) -> str:
    """The length of an unfinished run, and the command that resumes it if no process trains it."""
    if is_locked(run.folder):
        return f"{run.folder} is in training ({run.counter} {run.count:,})"
    unfinished = f"{run.folder} is unfinished ({run.counter} {run.count:,})"
    if not run.can_go_on:
        return f"{unfinished} and has no checkpoint"
    command = shlex.join(["python", run.script, "--resume", str(run.folder)])
    return f"{unfinished}; go on with: {command}"


def is_of_kind(run: StoredRun, kind: Kind, dataset: str = "mnist") -> bool:
    """Whether a run's command was that of the kind, apart from length, seed and data set."""
    if run.script != kind.script or run.dataset != dataset:
        return False
    actual, wanted = _settings(run.args), _settings(kind.args())
    given = {"dataset", *cli.MAY_GROW}
    return all(actual[name] == wanted[name] for name in wanted if name not in given)


def newest_of_kind(found: Runs, kind: Kind, dataset: str = "mnist") -> Runs:
    """The `newest` finished run of a kind and those that differ from it only in their seed."""
    of_kind = [run for run in found if is_of_kind(run, kind, dataset)]
    return newest(of_kind, kind.n_epochs())


def newest(found: Runs, n_epochs: int) -> Runs:
    """The newest finished run and those that differ from it only in their seed, by seed.

    Runs of full length, `n_epochs`, take precedence over newer, shorter ones.
    """
    finished = [run for run in found if run.finished]
    if not finished:
        return []
    chosen = max(reversed(finished), key=lambda run: run.n_epochs >= n_epochs)
    wanted = _all_but_seed(chosen)
    return next(runs for runs in seed_groups(finished) if _all_but_seed(runs[0]) == wanted)


def seed_groups(found: Runs) -> list[Runs]:
    """The finished runs in groups that differ only in their seed, by seed: the newest of each."""
    groups = {}
    for run in found:
        if run.finished:
            groups.setdefault(_all_but_seed(run), {})[run.args.seed] = run
    return [[by_seed[seed] for seed in sorted(by_seed)] for by_seed in groups.values()]


def _settings(args: Namespace) -> dict:
    return {name: value for name, value in vars(args).items() if name not in NOT_OF_TRAINING}


def _all_but_seed(run: StoredRun) -> tuple:
    settings = sorted((name, repr(value)) for name, value in _settings(run.args).items())
    return run.script, run.count, len(run.history), tuple(settings)
