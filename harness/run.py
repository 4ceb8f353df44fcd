"""The folder of one training, from its settings to its graded numbers.

    config.json              settings, command line, commit, versions, hardware, start
    metrics.jsonl            one JSON object per epoch, or per some batches
    *.png, *.npz, *.pdf      sample grids with their arrays; curves
    checkpoint.pt            the state that --resume continues from, and one before it
    result.json              the graded numbers of a finished run
    model.safetensors        the evaluated weights of a finished run
    index.html               shows the run, and reloads itself while it trains (`harness/live.py`)

With `--tensorboard` there are event files, too. A run that is killed continues with `--resume` and
ends with the same numbers.
"""

import contextlib
import itertools
import json
import operator
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from datasets import Batches, fingerprint_of
from harness import checkpoints, files, interrupts, live, records, references, steps, units
from harness import tensorboard as event_files
from harness.devices import RandomState, float32_by_default, select_device
from harness.errors import UserError
from harness.plots import Curves, save_grid
from harness.progress import Pace, progress_bar
from harness.provenance import now, provenance
from harness.settings import RunConfig

OVERSUBSCRIBED = (
    "\nthe CPU is oversubscribed: set OMP_NUM_THREADS=1 for runs in parallel, or threads wait for "
    "each other and training is many times slower"
)
MANY_DEAD = 0.5  # the share of a layer's units that is worth a line
CHECKPOINT_COST = 0.02  # the share of a run's time that writing checkpoints may take


class Run:
    """One training: a new one, or with `--resume` or `--evaluate` an earlier one.

        with Run(config, CURVES) as run:
            ...                                      # data, model, optimiser, on run.device
            run.start_or_resume(model=model, optimizer=optimizer)
            for epoch in run.remaining(config.epochs):
                ...
                run.log(epoch=epoch, ...)
                run.checkpoint()
            run.finish(results, model)

    It selects the device and sets the seed. If the block fails, the curves so far are drawn, and
    the command that resumes the run is added to the exception.

    Args:
        config: the settings.
        curves: the plot that is drawn now and then while the run trains, and at its end.

    Attributes:
        device: where the run trains.
        folder: Path of the run folder, once `start_or_resume` has been called.
        history: the lines of `metrics.jsonl`, a list of dicts.

    Raises:
        UserError: the device is not available, or a setting is not the report's with its protocol.
    """

    def __init__(self, config: RunConfig, curves: Curves):
        config.check_protocol()  # of settings made in a notebook, too
        self.config, self.curves = config, curves
        self.device = select_device(config.run.device)
        self.folder = None
        self.history = []
        self._parts = {}
        self._total = 0
        self._checkpoint_pace = Pace(CHECKPOINT_COST)
        self._interval_started = time.perf_counter()
        self._bar = self._page = self._events = self._lock = None
        self._precision = contextlib.ExitStack()
        self._warn_of_dead_units = True
        self._warn_of_load = self.device.type == "cpu" and torch.get_num_threads() > 1
        self._trains = config.run.evaluate is None
        if config.run.tensorboard and self._trains:
            event_files.check_installed()
        steps.use_graphs = config.run.graph
        torch.manual_seed(config.run.seed)

    @property
    def count(self) -> int:
        """Epochs or batches done, by the last line of metrics."""
        return records.count_of(self.history)

    def start_or_resume(self, **parts) -> None:
        """Create the folder of a new run, or load an earlier run's state into the parts.

        A new run gets the folder `--out`, or, if that is taken, `-2`, `-3`, ... is appended.

        Args:
            parts: whatever has `state_dict` and `load_state_dict` and changes in training: models,
                optimisers, averages, schedulers. Checkpoints hold them, and the random state.

        Raises:
            UserError: the folder cannot be made, or holds nothing that fits the parts.
        """
        self._parts = parts | {"random": RandomState(self.device)}
        options = self.config.run
        if options.evaluate is not None:
            self.folder = options.evaluate
            records.read_results(self.folder)  # damaged ones are an error now, not at the end
            self._check_origin(records.read_config(self.folder))
            self._acquire_lock()
            files.check_writable(self.folder)
            self.history = checkpoints.load(self.folder, self._parts, (checkpoints.NEWEST,))
        elif options.resume is not None:
            self.folder = options.resume
            self._resume()
        else:
            self._start()
        self._page = live.LivePage(self.folder, self.config, self.curves)

    def remaining(self, total: int) -> Iterator[int]:
        """The epochs or batches still to do, counted from 1 to `total`."""
        if not self._trains:
            return
        if self.config.run.tensorboard:
            self._events = event_files.EventFile(self.folder, self.config.flat(), self.history)
        self._total = total
        self._page.start(self.history, total)
        self._interval_started = time.perf_counter()
        with progress_bar(total, self.count) as self._bar:
            for count in range(self.count + 1, total + 1):
                interrupts.check()
                yield count
                self._bar.update(count - self._bar.n)

    def progress(self, batches: Iterable) -> Iterator:
        """The batches of one epoch, with the progress bar following them."""
        n_batches = operator.length_hint(batches)  # 0 of a generator: the bar then waits
        for batch in batches:
            interrupts.check()
            yield batch
            if n_batches:
                self._bar.update(1 / n_batches)

    def dead_units(
        self, model: torch.nn.Module, layers: Iterable[torch.nn.Module], data: Batches
    ) -> float:
        """The share of dead units in the worst layer, see `units.dead_share`.

        If it is more than half, one line says so, once.
        """
        share = units.dead_share(model, layers, data)
        if share > MANY_DEAD and self._warn_of_dead_units:
            self._warn_of_dead_units = False  # one line is enough
            n_images = min(units.N_IMAGES, data.n_images)
            print(
                f"\n{share:.0%} of the units of a hidden layer are dead: none of "
                f"{n_images:,} images makes them fire, so they learn no more; a lower --lr "
                "kills fewer",
                file=sys.stderr,
            )
        return share

    def log(self, **metrics: float) -> None:
        """Append a line to `metrics.jsonl`, with the seconds of training since the last one.

        Those of checkpoints and of what comes between a line and its checkpoint do not count.

        Args:
            metrics: numbers by name; one of them is `epoch` or `batch`.

        Raises:
            UserError: a value is not finite. The line is not written.
        """
        counter = records.counter_of(metrics)
        values = {key: value for key, value in metrics.items() if key != counter}
        for key, value in values.items():
            if not records.is_number(value):
                raise UserError(
                    f"{key} is not finite at {counter} {metrics[counter]}; last checkpoint kept in "
                    f"{self.folder}; start a new run with a lower --lr"
                )
        finished = time.perf_counter()
        line = metrics | {"seconds": round(finished - self._interval_started, 3)}
        self._interval_started = finished
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        self.history.append(line)
        if self._events is not None:
            self._events.add_line(line)
        if self._warn_of_load and _oversubscribed():
            self._warn_of_load = False  # one line is enough
            print(OVERSUBSCRIBED, file=sys.stderr)
        self._bar.set_description(f"{counter} {self.count:,}", refresh=False)
        shown = ", ".join(f"{key} {value:.4g}" for key, value in list(values.items())[:2])
        self._bar.set_postfix_str(" " + shown, refresh=False)

    def save_grid(
        self, name: str, panels: dict, caption: str, n_columns: int | None = None
    ) -> None:
        """Write sample images to NAME.png and NAME.npz in the run folder; see `plots.save_grid`."""
        shape = self.config.image_shape
        save_grid(self.folder / f"{name}.png", panels, caption, n_columns, shape)

    def checkpoint(self) -> None:
        """Write a checkpoint, the curves and the live page, each if enough time has passed.

        After the last epoch or batch all are written. Call it after `log`, with nothing trained
        in between.
        """
        last = self.count == self._total
        if last or self._checkpoint_pace.due():
            with self._checkpoint_pace.timed():
                checkpoints.save(self.folder, self._parts, self.history)
        self._page.update(self.history, last)
        if self._events is not None:
            self._events.add_grids(self.count)
        self._interval_started = time.perf_counter()

    def finish(self, results: dict[str, dict], model: torch.nn.Module) -> None:
        """Grade the run, write `model.safetensors` and `result.json`, and print the results.

        Args:
            results: dicts of numbers, by name. Those of an earlier evaluation of this run stay
                unless they are computed again.
            model: the trained model whose results these are.
        """
        for name, values in results.items():
            for key, value in values.items():
                if not records.is_number(value):
                    raise UserError(f"{name}: {key} is not finite: the run cannot be evaluated")
        all_results = records.read_results(self.folder) | results
        graded = references.grade(self.config.SCRIPT, self.config.flat(), self.history, all_results)
        checkpoints.save_weights(self.folder, model)
        if self._events is not None:
            self._events.add_grids(self.count, last=True)
            self._events.add_results(all_results, self.count)
        # Before `result.json`: a kill between the two leaves no page that reloads for ever.
        self._page.finished(self.history, all_results)
        files.write_json(
            self.folder / "result.json",
            {"graded": [row.as_dict() for row in graded], **all_results, "finished": now()},
        )
        if graded:
            print(f"\n{references.table(graded, records.counter_of(self.history[-1]))}\n")
        for name, values in all_results.items():
            age = "" if name in results else " (of an earlier evaluation)"
            numbers = ", ".join(f"{key} {value:.5g}" for key, value in values.items())
            print(f"{name}{age}: {numbers}")
        print(f"run folder: {self.folder}")

    def close(self) -> None:
        """Let other runs have the folder: those of this process, too, such as a notebook's."""
        files.unlock(self._lock)
        self._lock = None

    def __enter__(self) -> "Run":
        self._precision.enter_context(float32_by_default())
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self._end(error)
        except BaseException as second:
            for note in getattr(error, "__notes__", []):  # how to resume
                second.add_note(note)
            raise

    def _end(self, error: BaseException | None) -> None:
        with contextlib.ExitStack() as at_last:  # even if a second Ctrl-C comes here
            at_last.callback(self.close)
            at_last.enter_context(self._precision)
            fails = self._page is not None and error is not None
            command = None
            if fails and not isinstance(error, UserError):
                finished = not self._trains or (self.folder / "result.json").exists()
                mode = "--evaluate" if finished else "--resume"
                command = shlex.join(["python", self._program(), mode, str(self.folder)])
                error.add_note(f"last checkpoint in {self.folder}; resume with: {command}")
            if self._events is not None:
                at_last.callback(self._events.close)
            if self._bar is not None:
                self._bar.close()
            if fails and self._trains:
                at_last.callback(self._page.stopped, self.history, command)
                self._page.draw_curves(self.history)

    def _start(self) -> None:
        out = self.config.run.out or Path("runs") / self.config.name
        recorded = provenance(self.device)
        try:
            self.folder = _claim_folder(out)
        except OSError as error:
            raise UserError(
                f"the run folder {out} cannot be made: {error.strerror}; name another with --out"
            ) from error
        self._acquire_lock()
        origin = {"script": self.config.SCRIPT, "program": self.config.program()}
        origin["program_sha256"] = self.config.checksum()
        origin |= self._images()
        self._write_config(origin | recorded)
        checkpoints.save(self.folder, self._parts, self.history)
        print(f"watch the training in {self.folder / live.FILE}", file=sys.stderr)

    def _resume(self) -> None:
        config = records.read_config(self.folder, self.config.program())
        self._check_origin(config)
        self._acquire_lock()
        files.check_writable(self.folder)
        files.remove_partial(self.folder)
        self.history = checkpoints.load(self.folder, self._parts)
        # The run is no longer finished. This comes first: a run killed here has its old settings.
        for name in ("result.json", checkpoints.WEIGHTS):
            (self.folder / name).unlink(missing_ok=True)
        lines = "".join(json.dumps(line) + "\n" for line in self.history)
        files.write_whole(self.folder / "metrics.jsonl", lambda file: file.write(lines.encode()))
        resumed = config.get("resumed")
        if not isinstance(resumed, list):  # the first time, or a damaged file
            resumed = []
        config["resumed"] = resumed + [{"from": self.count, **provenance(self.device)}]
        self._write_config(config)

    def _images(self) -> dict:
        """What `config.json` says of the images: their shape, and one's own images' checksum."""
        images = {"image_shape": list(self.config.image_shape)}
        if (checksum := fingerprint_of(self.config.data)) is not None:
            images["images_sha256"] = checksum
        return images

    def _check_origin(self, config: dict) -> None:
        """Raise UserError if one's own images have changed since the run started.

        If the script has, one line says so: a change without new parameters fits the checkpoints.
        """
        recorded = config.get("images_sha256")
        if recorded is not None and recorded != fingerprint_of(self.config.data):
            raise UserError(
                f"{self.config.data.dataset} has changed since {self.folder} was started: "
                "put the same images there, or start a new run"
            )
        checksum = self.config.checksum()
        if config.get("program_sha256", checksum) != checksum:
            print(
                f"{self.config.program()} has changed since {self.folder} was started: what "
                "follows is of the changed script",
                file=sys.stderr,
            )

    def _write_config(self, config: dict) -> None:
        """Write `config.json` with the present settings."""
        settings = self.config.flat() | {"out": str(self.folder), "device": self.device.type}
        files.write_json(self.folder / "config.json", config | {"settings": settings})

    def _program(self) -> str:
        """The script as the user called it; by its name, if a notebook called its `main`."""
        name = self.config.program()
        return sys.argv[0] if Path(sys.argv[0]).resolve().name == name else name

    def _acquire_lock(self) -> None:
        """Lock the folder: two trainings in one folder would mix their lines."""
        for pause in (0.2, 0):  # `figures train` holds the lock for a moment to look at it
            try:
                self._lock = files.try_lock(self.folder)
                return
            except BlockingIOError:
                time.sleep(pause)
        raise UserError(f"{self.folder} is being trained by another process")


def candidates(folder: Path) -> Iterator[Path]:
    """The names a run may take, by preference: `folder`, `folder-2`, `folder-3`, ..."""
    for suffix in itertools.chain([""], (f"-{n}" for n in itertools.count(2))):
        yield folder.parent / (folder.name + suffix)


def _claim_folder(folder: Path) -> Path:
    """Make the first of the folder's `candidates` that is free; only one process can get it."""
    for candidate in candidates(folder.resolve() if folder.name in ("", "..") else folder):
        candidate.mkdir(parents=True, exist_ok=True)
        if not any(candidate.iterdir()):
            with contextlib.suppress(FileExistsError):
                (candidate / "config.json").touch(exist_ok=False)
                return candidate


def _oversubscribed() -> bool:
    """Whether clearly more threads want to run than the machine has cores, by its load average."""
    if not hasattr(os, "getloadavg"):  # Windows
        return False
    return os.getloadavg()[0] > 1.5 * os.cpu_count()
