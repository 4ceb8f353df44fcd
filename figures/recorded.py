"""Recorded runs: settings, metrics and results of many runs in one file, a JSON object per line.

Without weights and pictures a run takes tens of kilobytes, so that it can be kept and passed on.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from figures.runs import Runs, StoredRun, stored_run
from harness.errors import UserError
from harness.files import read_regular
from harness.records import DAMAGE, check_config, check_history, check_results

LEFT_OUT = {"out", "data_dir"}  # settings that say where a run was


def record(run: StoredRun) -> str:
    """The line of a finished run.

    Raises:
        UserError: its `config.json` is damaged.
    """
    settings = {name: value for name, value in run.settings.items() if name not in LEFT_OUT}
    config = _without_command(run.config) | {"script": run.script, "settings": settings}
    try:
        config["resumed"] = [_without_command(start) for start in config.get("resumed", [])]
    except DAMAGE as error:
        raise UserError(f"{run.folder}: its config.json is damaged") from error
    content = {"run": run.folder.name, "config": config}
    return json.dumps(content | {"metrics": run.history, "results": run.results})


def read_recorded(path: Path) -> Runs:
    """The runs of a file; the `folder` of each is only its name.

    Raises:
        UserError: the file cannot be read, or a line of it is damaged.
    """
    try:
        lines = read_regular(path).splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    runs = []
    for n, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
            history, results = content["metrics"], content["results"]
            check_config(content["config"])
            check_history(history)
            check_results(results)
            run = stored_run(Path(content["run"]), content["config"], history, results, True)
        except (UserError, *DAMAGE) as error:
            raise UserError(
                f"{path}: line {n} is damaged, or written by another version"
            ) from error
        runs.append(run._replace(recorded=True))
    return runs


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


def _identity(run: StoredRun) -> tuple:
    return run.script, run.folder.name, run.seed, run.started
