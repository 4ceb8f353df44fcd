"""Finding, reading and choosing runs."""

import os
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from figures.kinds import GAN, NF, SCRIPTS, VAE, Kind, epochs_of
from harness import records, references
from harness.errors import UserError
from harness.files import is_locked
from harness.references import Graded
from harness.settings import MAY_DIFFER, MAY_GROW

# Each script logs one metric that the others don't.
MARKS = {"val_neg_elbo_nats": VAE, "g_loss": GAN, "val_bpd": NF, "val_bpd_shifted": NF}
# Settings that leave the training as it is, and the seed.
NOT_OF_TRAINING = {"seed", "out", *MAY_DIFFER}
RUN_FILES = {"metrics.jsonl", "config.json"}  # a folder with one of them is a run's
OF_A_KIND = ("zdim", "protocol", "binarize")  # settings in which a kind is itself


class StoredRun(NamedTuple):
    """A run as its files describe it.

    An unfinished run has no `results`, and perhaps no line of metrics yet. Without a `config.json`
    a run has default settings and counts as finished. A `recorded` one has no folder, only a name.
    A `chosen` one was named on the command line.
    """

    folder: Path
    script: str
    settings: dict[str, Any]
    history: list[dict]
    results: dict[str, dict]
    config: dict
    finished: bool
    recorded: bool = False
    chosen: bool = False

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.settings["seed"]

    @property
    def dataset(self) -> str:
        """The data set it was trained on."""
        return self.settings["dataset"]

    @property
    def n_epochs(self) -> int:
        """The epochs it was started for."""
        return epochs_of(self.settings)

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
    def started(self) -> str:
        """The date and time of its start, '' if unknown."""
        return str(self.config.get("started", ""))

    @property
    def seconds(self) -> float:
        """Seconds of training, without the evaluation at the end."""
        return sum(line.get("seconds", 0.0) for line in self.history)

    @property
    def can_resume(self) -> bool:
        """Whether it is unfinished and has a checkpoint."""
        return not self.finished and any(self.folder.glob("checkpoint*.pt"))

    def graded(self) -> list[Graded]:
        """The graded rows, from its files alone."""
        return references.grade(self.script, self.settings, self.history, self.results)

    def final(self, key: str, count: int | None = None) -> float | None:
        """A metric as if the run had ended with its last line up to `count`; None if it has none.

        That of a GAN is the mean over the last tenth.
        """
        count = self.count if count is None else count
        history = [line for line in self.history if records.count_of([line]) <= count]
        if not history or self.count < count:
            return None
        if self.script == GAN:
            return references.tail_mean(history, key)
        return history[-1].get(key)


Runs = list[StoredRun]  # in figures and tables: runs that differ only in their seed
Groups = dict[str, Runs]  # by kind


def read_run(folder: Path) -> StoredRun:
    """Read a run folder, with or without a `config.json`.

    Raises:
        UserError: a file is missing or damaged, or no script of this project wrote it.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file, not a run folder")
    has_metrics = (folder / "metrics.jsonl").exists()
    foreign = has_metrics and not (folder / "config.json").exists()
    return stored_run(
        folder,
        config={} if foreign else records.read_config(folder),
        history=records.read_metrics(folder) if has_metrics else [],
        results=records.read_results(folder),
        finished=foreign or (folder / "result.json").exists(),
    )


def stored_run(
    folder: Path,
    config: dict,
    history: list[dict],
    results: dict[str, dict],
    finished: bool,
) -> StoredRun:
    """A run from the content of its files; that of a foreign run's `config.json` is {}.

    Raises:
        UserError: no script of this project wrote it, or a setting or a metric is damaged.
    """
    of_metrics = next((MARKS[k] for k in MARKS if any(k in line for line in history)), None)
    script = config.get("script", of_metrics)
    if script not in SCRIPTS or (history or finished) and script != of_metrics:
        whose = config.get("script", "a script of this project")
        raise UserError(f"{folder}: metrics.jsonl holds no metrics of {whose}")
    if config.get("program", script) != script:
        raise UserError(f"{folder} is a run of {config['program']!r}, a changed copy of {script}")
    read_settings = SCRIPTS[script].Config.of_dict
    settings = read_settings(config.get("settings", {}), folder / "config.json").flat()
    run = StoredRun(folder, script, settings, history, results, config, finished)
    try:
        run.graded()
    except records.DAMAGE as error:
        raise UserError(f"{folder}: a value is missing from its metrics: {error}") from error
    return run


def chosen_run(name: str, kind: Kind, folder: Path) -> StoredRun:
    """The run in `folder`, which --`name` gives as one of a kind, of any length, size and images.

    Raises:
        UserError: it is not a finished run of the kind.
    """
    run = read_run(folder)
    if run.script != kind.script:
        raise UserError(f"--{name} {folder}: a run of {run.script}, not of {kind.script}")
    for setting in OF_A_KIND:
        actual, wanted = run.settings.get(setting), kind.settings().get(setting)
        if setting == "zdim" and wanted != 2:  # only a manifold needs its number of dimensions
            continue
        if actual != wanted:
            raise UserError(f"--{name} {folder}: its {setting} is {actual}, not {wanted}")
    if not run.finished:
        raise UserError(f"--{name}: {unfinished_message(run)}")
    return run._replace(chosen=True)


def find_runs(base: Path) -> tuple[Runs, list[str]]:
    """All readable runs in or under `base`, oldest first, and messages about the others."""
    found, messages = [], []

    def say(error):
        messages.append(f"{shortened(error.filename)}: {error.strerror}")

    folders, waiting = [], [str(base)]
    while waiting:  # no recursion, and no links: folders may be deep, and links may form circles
        name = waiting.pop()
        try:
            with os.scandir(name) as entries:
                inside = list(entries)
        except OSError as error:
            say(error)
            continue
        if any(entry.name in RUN_FILES for entry in inside):
            folders.append(Path(name))
        waiting += [entry.path for entry in inside if entry.is_dir(follow_symlinks=False)]
    for folder in sorted(folders):
        try:
            found.append(read_run(folder))
        except UserError as error:
            messages.append(str(error))
        except OSError as error:
            say(error)
    found.sort(key=lambda run: run.started)
    return found, messages


def shortened(name: object) -> str:
    """A path of at most 200 characters: its start and its end."""
    text = str(name)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-97:]}"


def with_folder(runs: Runs) -> StoredRun | None:
    """The first of the runs that has a folder, and so pictures."""
    return next((run for run in runs if not run.recorded), None)


def are_short(runs: Runs, kind: Kind) -> bool:
    """Whether these runs of a kind are shorter than the report's; no runs, or a chosen one, not."""
    return bool(runs) and not runs[0].chosen and runs[0].n_epochs < kind.n_epochs()


def unfinished_message(run: StoredRun) -> str:
    """The length of an unfinished run, and the command that resumes it if no process trains it."""
    if is_locked(run.folder):
        return f"{run.folder} is in training ({run.counter} {run.count:,})"
    unfinished = f"{run.folder} is unfinished ({run.counter} {run.count:,})"
    if not run.can_resume:
        return f"{unfinished} and has no checkpoint"
    command = shlex.join(["python", run.script, "--resume", str(run.folder)])
    return f"{unfinished}; resume with: {command}"


def is_of_kind(run: StoredRun, kind: Kind, dataset: str = "mnist") -> bool:
    """Whether a run's command was that of the kind, apart from length, seed and data set."""
    if run.script != kind.script or run.dataset != dataset:
        return False
    actual, wanted = _of_training(run.settings), _of_training(kind.settings())
    given = {"dataset", "val_fraction", *MAY_GROW}
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
            groups.setdefault(_all_but_seed(run), {})[run.seed] = run
    return [[by_seed[seed] for seed in sorted(by_seed)] for by_seed in groups.values()]


def _of_training(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in NOT_OF_TRAINING}


def _all_but_seed(run: StoredRun) -> tuple:
    settings = sorted((name, repr(value)) for name, value in _of_training(run.settings).items())
    return run.script, run.count, len(run.history), tuple(settings)
