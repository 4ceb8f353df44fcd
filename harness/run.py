"""The folder and the loop of one training.

    config.json              arguments, command line, commit, versions, hardware, start
    metrics.jsonl            one JSON object per line; its first key counts epochs or batches
    *.png, *.pdf             sample grids and curves
    checkpoint.pt            the state that --resume continues from, and one before it
    result.json              the graded numbers of a finished run
    model.safetensors        the evaluated weights of a finished run
    index.html               shows the run, and reloads itself while it trains (`harness/live.py`)

With `--tensorboard` there are event files, too. A run that is killed continues with `--resume` and
ends with the same numbers.
"""

import contextlib
import datetime
import importlib.metadata
import itertools
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from harness import checkpoints, cli, files, graded, live, records, tensorboard, weights
from harness.devices import RandomState
from harness.errors import UserError
from harness.pace import Pace
from harness.progress import progress_bar

CROWDED = (
    "\nother processes share these cores, and threads that wait for each other train many times "
    "slower: start each of several runs with OMP_NUM_THREADS=1"
)
CHECKPOINT_COST = 0.02  # the share of a run's time that writing checkpoints may take


class Run:
    """One training: a new one, or with `args.resume` or `args.evaluate` an earlier one.

    A context manager around the whole training. A block that fails draws the curves so far and
    adds the command that resumes the run to the exception.

    Args:
        args: the parsed command line. A new run gets the folder `args.out`, or, if that is
            taken, `-2`, `-3`, ... is appended: nothing is ever written over.
        device: where the run trains.
        draw_curves: called as draw_curves(folder, history) now and then while the run trains, and
            when it ends or stops.
        grade: called as grade(args, history, results), returns the graded rows.
        parts: what a checkpoint holds: objects with `state_dict` and `load_state_dict`. Those of
            an earlier run are loaded here, random states included.

    Attributes:
        folder: Path of the run folder.
        history: the lines of `metrics.jsonl`, a list of dicts.

    Raises:
        UserError: the folder cannot be made, or holds nothing to resume.
    """

    def __init__(self, args, device: torch.device, draw_curves: Callable, grade: Callable, **parts):
        self.history = []
        self._args = args
        self._draw_curves = draw_curves
        self._grade = grade
        self._parts = parts | {"random": RandomState(device)}
        self._checkpoint_pace = Pace(CHECKPOINT_COST)
        self._interval_started = time.perf_counter()
        self._bar = None
        self._may_be_crowded = device.type == "cpu" and torch.get_num_threads() > 1
        self._events = self._folder_lock = None
        if args.tensorboard and args.evaluate is None:
            tensorboard.check_installed()
        try:
            self._open(device)
        except BaseException:
            self.close()
            raise
        self._page = live.LivePage(self.folder, draw_curves, grade, args)

    @property
    def count(self) -> int:
        """Epochs or batches done, by the last line of metrics."""
        return records.count_of(self.history)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        with contextlib.ExitStack() as at_last:  # even if a second Ctrl-C comes here
            at_last.callback(self.close)
            if self._bar is not None:
                self._bar.close()
            command = None
            if error is not None and not isinstance(error, UserError):
                finished = (self.folder / "result.json").exists()
                mode = "--evaluate" if finished else "--resume"
                command = shlex.join(["python", self._program(), mode, str(self.folder)])
                error.add_note(f"last checkpoint in {self.folder}; go on with: {command}")
            if error is not None and self._args.evaluate is None:
                at_last.callback(self._page.stopped, self.history, command)
            with contextlib.suppress(OSError):  # the full disk that stopped the run, say
                if self._events is not None:
                    self._events.close()
                if error is not None:
                    self._curves()

    def close(self) -> None:
        """Let other runs have the folder: those of this process, too, such as a notebook's."""
        files.unlock(self._folder_lock)
        self._folder_lock = None

    def count_to(self, n: int) -> Iterator[int]:
        """The epochs or batches still to do, up to `n`.

        After each that has logged a line, a checkpoint is written, unless writing would exceed
        2% of the run's time. After the last one the curves are drawn.
        """
        if self._args.evaluate is not None:
            return
        if self._args.tensorboard:
            self._events = tensorboard.EventFile(self.folder, self.history)
        self._page.start(self.history, n)
        self._bar = progress_bar(n, self.count)
        self._interval_started = time.perf_counter()
        for count in range(self.count + 1, n + 1):
            yield count
            self._bar.update(count - self._bar.n)
            if self.count == count:
                self.save_checkpoint(last=count == n)
                if self._events is not None:
                    self._events.add_grids(count)
                self._page.update_curves(self.history)
                self._interval_started = time.perf_counter()
        self._bar.close()
        self._curves()
        self._page.evaluating(self.history)

    def counted(self, batches: Iterable) -> Iterator:
        """The batches of one epoch, with the progress bar following them."""
        for batch in batches:
            yield batch
            self._bar.update(1 / len(batches))
            self._page.update(self.history, self._bar.n)

    def log(self, **metrics: float) -> None:
        """Append a line to `metrics.jsonl`; the seconds of training since the last one are added.

        They are without checkpoints and curves. The first key counts epochs or batches.

        Raises:
            UserError: a value is not finite. The line is not written.
        """
        (counter, count), *values = metrics.items()
        for key, value in values:
            if not math.isfinite(value):
                raise UserError(
                    f"{key} is not finite at {counter} {count}; last checkpoint kept in "
                    f"{self.folder}; start a new run with a lower --lr"
                )
        line = metrics | {"seconds": round(time.perf_counter() - self._interval_started, 3)}
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        self.history.append(line)
        if self._events is not None:
            self._events.add_line(line)
        if self._may_be_crowded and _crowded():
            self._may_be_crowded = False  # one line is enough
            print(CROWDED, file=sys.stderr)
        if self._bar is not None:
            self._bar.set_description(f"{counter} {count:,}", refresh=False)
            shown = ", ".join(f"{key} {value:.4g}" for key, value in values[:2])
            self._bar.set_postfix_str(" " + shown, refresh=False)

    def save_checkpoint(self, last: bool) -> None:
        """Write a checkpoint if it is the last one, or if enough time has passed."""
        if last or self._checkpoint_pace.due():
            with self._checkpoint_pace.timed():
                checkpoints.save(self.folder, self._parts, self.history)

    def finish(self, results: dict[str, dict], model: torch.nn.Module) -> None:
        """Grade the run, write `model.safetensors` and `result.json`, and print the results.

        Args:
            results: dicts of numbers, by name. Those of an earlier evaluation of this run stay
                unless they are computed again.
            model: the trained model whose results these are.
        """
        for name, values in results.items():
            for key, value in values.items():
                if not math.isfinite(value):
                    raise UserError(f"{name}: {key} is not finite: the run cannot be evaluated")
        new, results = results, records.read_results(self.folder) | results
        rows = self._grade(self._args, self.history, results)
        weights.save(self.folder, model)
        files.write_json(
            self.folder / "result.json", {"graded": rows, **results, "finished": _now()}
        )
        if self._events is not None:
            self._events.add_grids(self.count, last=True)
        self._page.finished(self.history, results)
        print(f"\n{graded.table(rows, next(iter(self.history[-1])))}\n")
        for name, values in results.items():
            age = "" if name in new else " (of an earlier evaluation)"
            numbers = ", ".join(f"{key} {value:.5g}" for key, value in values.items())
            print(f"{name}{age}: {numbers}")
        print(f"run folder: {self.folder}")

    def _open(self, device: torch.device) -> None:
        if self._args.evaluate is not None:
            self.folder = Path(self._args.evaluate)
            records.read_results(self.folder)  # damaged ones are an error now, not at the end
            self._lock()
            self.history = checkpoints.load(self.folder, self._parts, (checkpoints.NEWEST,))
        elif self._args.resume is not None:
            self.folder = Path(self._args.resume)
            self._resume(device)
        else:
            self._start(device)

    def _start(self, device: torch.device) -> None:
        out, provenance = self._args.out, _provenance(device)
        try:
            self.folder = _claim_folder(Path(out))
        except OSError as error:
            raise UserError(
                f"the run folder {out} cannot be made: {error.strerror}; name another with --out"
            ) from error
        script, arguments = self._args.script, _settings(self._args, self.folder, device)
        self._lock()
        self._write_config({"script": script, "arguments": arguments, **provenance})
        self.save_checkpoint(last=False)
        print(f"the training can be watched in {self.folder / live.FILE}", file=sys.stderr)

    def _resume(self, device: torch.device) -> None:
        config = records.read_config(self.folder, self._args.script)
        self._lock()
        self.history = checkpoints.load(self.folder, self._parts)
        for name in ("result.json", weights.FILE):  # the run is no longer finished
            (self.folder / name).unlink(missing_ok=True)
        lines = "".join(json.dumps(line) + "\n" for line in self.history)
        files.write_whole(self.folder / "metrics.jsonl", lambda file: file.write(lines.encode()))
        earlier = config.get("resumed")
        config["arguments"] = _settings(self._args, self.folder, device)
        config["resumed"] = [
            *(earlier if isinstance(earlier, list) else []),
            {"from": self.count, **_provenance(device)},
        ]
        self._write_config(config)

    def _write_config(self, config: dict) -> None:
        files.write_json(self.folder / "config.json", config)

    def _program(self) -> str:
        """The script as the user called it; by its name, if a notebook called its `main`."""
        script = self._args.script
        return sys.argv[0] if Path(sys.argv[0]).name == script else script

    def _lock(self) -> None:
        """Lock the folder: two trainings in one folder would mix their lines."""
        for pause in (0.2, 0):  # `figures --train` holds the lock for a moment to look at it
            try:
                self._folder_lock = files.try_lock(self.folder)
                return
            except BlockingIOError:
                time.sleep(pause)
        raise UserError(f"{self.folder} is being trained by another process")

    def _curves(self) -> None:
        if self.history:
            self._draw_curves(self.folder, self.history)


def candidates(folder: Path) -> Iterator[Path]:
    """The names a run may take, by preference: `folder`, `folder-2`, `folder-3`, ..."""
    for suffix in itertools.chain([""], (f"-{n}" for n in itertools.count(2))):
        yield folder.parent / (folder.name + suffix)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of threads PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{platform.machine()} GPU (Metal)"
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    threads = torch.get_num_threads()
    return f"{next(names, platform.machine())}, {threads} thread{'s' if threads > 1 else ''}"


def _crowded() -> bool:
    """Whether clearly more threads want to run than the machine has cores, by its load average."""
    if not hasattr(os, "getloadavg"):  # Windows
        return False
    return os.getloadavg()[0] > 1.5 * os.cpu_count()


def _claim_folder(folder: Path) -> Path:
    """Make the first of the folder's `candidates` that is free; only one process can get it."""
    for candidate in candidates(folder.resolve() if folder.name in ("", "..") else folder):
        candidate.mkdir(parents=True, exist_ok=True)
        if not any(candidate.iterdir()):
            with contextlib.suppress(FileExistsError):
                (candidate / "config.json").touch(exist_ok=False)
                return candidate


def _settings(args, folder: Path, device: torch.device) -> dict:
    kept = {name: value for name, value in vars(args).items() if name not in cli.NO_SETTINGS}
    return kept | {"out": str(folder), "device": device.type}


def _provenance(device: torch.device) -> dict:
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("numpy", "scipy", "matplotlib"):
        versions[package] = importlib.metadata.version(package)
    return {
        "command": shlex.join(["python", *sys.argv]),
        "git_commit": _git_commit(),
        "versions": versions,
        "device": device_name(device),
        "started": _now(),
    }


def _git_commit() -> str | None:
    """The commit of this source, with '-dirty' if files differ; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
