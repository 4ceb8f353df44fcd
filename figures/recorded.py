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

# Arguments that say where a run was, or how it was called.
LEFT_OUT = {"out", "data_dir", *cli.NO_SETTINGS}


def record(run: StoredRun) -> str:
    """The line of a finished run.

    Raises:
        UserError: its `config.json` is damaged.
    """
    arguments = {name: value for name, value in vars(run.args).items() if name not in LEFT_OUT}
    config = _without_command(run.config) | {"script": run.script, "arguments": arguments}
    try:
        config["resumed"] = [_without_command(start) for start in config.get("resumed", [])]
    except DAMAGE as error:
        raise UserError(f"{run.folder}: its config.json is damaged") from error
    content = {"run": run.folder.name, "config": config}
    return json.dumps(content | {"metrics": run.history, "results": run.results})


def read_recorded(path: Path) -> Iterator[StoredRun]:
    """The runs of a file; the `folder` of each is only its name.

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
                run = read_run(folder)  # with all checks of a run folder
            except (UserError, *DAMAGE) as error:
                raise UserError(
                    f"{path}: line {n} is damaged, or written by another version"
                ) from error
            yield run._replace(folder=name, recorded=True)


def merged(found: Runs, recorded: Iterable[StoredRun]) -> Runs:
    """Both without repeats, oldest first. Of a run finished in both, the one found is kept.

    Runs that don't say when they started are never taken for the same.
    """
    runs, known = list(found), {_identity(run) for run in found if run.finished}
    for run in recorded:
        if not run.started or _identity(run) not in known:
            runs.append(run)
            known.add(_identity(run))
    return sorted(runs, key=lambda run: run.started)


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
