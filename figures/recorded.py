"""Recorded runs: settings, metrics and results of many runs in one file, a JSON object per line.

Without weights and pictures a run takes tens of kilobytes, so that it can be kept and passed on.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from figures.runs import Runs, StoredRun, read_run
from harness import cli
from harness.errors import UserError
from harness.records import DAMAGE

# Left out: arguments that say where a run was, and not what.
PATHS = {"out", "data_dir", *cli.NO_SETTINGS}


def record(run: StoredRun) -> str:
    """The line of a finished run."""
    arguments = {name: value for name, value in vars(run.args).items() if name not in PATHS}
    config = _without_command(run.config) | {"script": run.script, "arguments": arguments}
    if "resumed" in config:
        config["resumed"] = [_without_command(start) for start in config["resumed"]]
    content = {"run": run.folder.name, "config": config}
    return json.dumps(content | {"metrics": run.history, "results": run.results})


def read_recorded(path: Path) -> Iterator[StoredRun]:
    """The runs of a file, each with its name for a folder.

    Raises:
        UserError: the file cannot be read, or a line of it is damaged.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    with TemporaryDirectory() as base:
        for n, line in enumerate(lines, start=1):
            folder = Path(base) / str(n)
            try:
                content = json.loads(line)
                name = Path(content["run"])
                _unpack(content, folder)
                run = read_run(folder)  # so that it passes every check of a run folder
            except (UserError, *DAMAGE) as error:
                raise UserError(f"{path}: line {n} is no run that --export wrote") from error
            yield run._replace(folder=name, recorded=True)


def merged(found: Runs, recorded: Iterable[StoredRun]) -> Runs:
    """Both without repeats, oldest first. Of a run in both, the one with a folder is kept."""
    runs = {_identity(run): run for run in [*recorded, *found]}
    return sorted(runs.values(), key=lambda run: run.started)


def _without_command(start: dict) -> dict:
    return {name: value for name, value in start.items() if name != "command"}


def _unpack(content: dict, folder: Path) -> None:
    """Write the files of a run folder."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(content["config"]))
    (folder / "result.json").write_text(json.dumps(content["results"]))
    lines = "".join(f"{json.dumps(line)}\n" for line in content["metrics"])
    (folder / "metrics.jsonl").write_text(lines)


def _identity(run: StoredRun) -> tuple:
    return run.script, run.folder.name, run.args.seed, run.started
