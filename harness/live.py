"""The live page: `index.html` in a run folder shows the training in a browser, without a server.

It holds the curves, the newest sample grids with the earlier ones in a row below, the graded rows
so far, the time left and the settings. A click opens a picture by itself. While the run trains, the
page reloads itself.
"""

import contextlib
import datetime
import html
import os
import time
from collections.abc import Iterable
from pathlib import Path
from string import Template
from urllib.parse import quote

from tqdm import tqdm

from harness import records, references
from harness.escape import html_cell, words
from harness.files import write_whole
from harness.plots import Curves, description, draw_curves
from harness.progress import Pace
from harness.settings import RunConfig

FILE = "index.html"
TEMPLATE = Template(Path(__file__).with_name("live.html").read_text())
RELOAD_SECONDS = 5
# The share of a run's time, and the seconds between two drawings or writings.
CURVES_COST, CURVES_SECONDS = 0.01, 5.0
PAGE_COST, PAGE_SECONDS = 0.002, 2.0


class LivePage:
    """Rewrites the curves and `index.html` of a run in training, now and then.

    A page or curve that cannot be written, on a full disk, say, does not stop the training.

    Args:
        folder: the run folder.
        config: the run's settings.
        curves: the plot of the script.
    """

    def __init__(self, folder: Path, config: RunConfig, curves: Curves):
        self._folder, self._curves = folder, curves
        self._script, self._settings = config.SCRIPT, config.flat()
        self._config = records.read_config(folder)
        self._total = 0
        self._started_at, self._started = 0, time.perf_counter()
        self._curves_pace = Pace(CURVES_COST, CURVES_SECONDS)
        self._page_pace = Pace(PAGE_COST, PAGE_SECONDS)

    def start(self, history: list[dict], total: int) -> None:
        """Write the page of a training that now begins, of `total` epochs or batches.

        The curves of a resumed one are drawn: it may have been killed after its last checkpoint.
        """
        self._total = total
        self.draw_curves(history)
        self._started_at, self._started = records.count_of(history), time.perf_counter()
        self._write_training(history)

    def update(self, history: list[dict], last: bool) -> None:
        """After a line of metrics: draw the curves again and rewrite the page, each if it is time.

        After the `last` line both are written, and the page says that only the evaluation is left.
        """
        if last or self._curves_pace.due():
            with self._curves_pace.timed():
                self.draw_curves(history)
        if last:
            self._write(history, "Trained; evaluating", {}, reloads=True)
        elif self._page_pace.due():
            with self._page_pace.timed():
                self._write_training(history)

    def draw_curves(self, history: list[dict]) -> None:
        """Draw the script's plot with published values, once there is a line of metrics."""
        if not history:
            return
        of_script = self._script, self._settings
        marked = [references.points(*of_script, key) for key in self._curves.columns]
        levels = [references.levels(*of_script, key) for key in self._curves.columns]
        with contextlib.suppress(OSError):
            draw_curves(
                self._curves,
                [history],
                self._folder / f"{self._curves.file}.png",
                sum(marked, []),
                list(dict.fromkeys(sum(levels, []))),
            )

    def stopped(self, history: list[dict], command: str | None) -> None:
        """Say that the training has stopped, and which command continues it."""
        state = f"Stopped at {_count(history, self._total)}"
        if command is not None:
            state += f"; resume with <code>{html.escape(command)}</code>"
        self._write(history, state, {})

    def finished(self, history: list[dict], results: dict[str, dict]) -> None:
        """Show the final graded rows and the results."""
        self._total = records.count_of(history)
        self._write(history, f"Finished, {_count(history, self._total)}", results)

    def _write_training(self, history: list[dict]) -> None:
        done, state = records.count_of(history), f"Training, {_count(history, self._total)}"
        if done > self._started_at:
            elapsed = time.perf_counter() - self._started
            seconds = elapsed * (self._total - done) / (done - self._started_at)
            state += f", about {tqdm.format_interval(seconds)} left"
        self._write(history, state, {}, reloads=True)

    def _write(
        self,
        history: list[dict],
        state: str,
        results: dict[str, dict],
        reloads: bool = False,
    ) -> None:
        done = records.count_of(history)
        with contextlib.suppress(OSError):
            page = TEMPLATE.substitute(
                title=html.escape(words(self._folder.resolve().name)),
                refresh=f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">' * reloads,
                state=state,
                done=done,
                total=max(self._total, 1),
                share=f"{done / self._total:.0%}" if self._total else "",
                sections="\n".join(self._sections(history, results)),
                now=datetime.datetime.now().astimezone().isoformat(" ", timespec="seconds"),
            )
            write_whole(
                self._folder / FILE,
                lambda file: file.write(page.encode(errors="replace")),
                flush=False,
            )

    def _sections(self, history: list[dict], results: dict[str, dict]) -> Iterable[str]:
        curves, grids = records.pictures(self._folder)
        shown = "curves: " + ", ".join(self._curves.columns.values())
        newest = _newest(grids)
        yield _pictures({path: shown for path in curves} | {path: _words(path) for path in newest})
        if earlier := [path for path in _by_number(grids) if path not in newest]:
            row = {path: _words(path) for path in earlier}
            yield "<h2>Earlier samples</h2>" + _pictures(row, "pictures earlier")
        tables = []
        if history:
            graded = references.grade(self._script, self._settings, history, results)
            rows = references.cells(graded, records.counter_of(history[-1]))
            yield "<h2>Graded</h2>" + _table(rows[1:], rows[0])
            tables.append("<h2>Last line of metrics</h2>" + _table(_numbers(history[-1])))
        for name, values in results.items():
            tables.append(f"<h2>Results: {html_cell(name)}</h2>" + _table(_numbers(values)))
        beside = "".join(f"<section>{table}</section>" for table in tables)
        yield f'<div class="beside">{beside}</div>'
        origin = {key: self._config.get(key) for key in ("started", "command", "git_commit")}
        settings = origin | self._config["settings"] | {"device": self._config.get("device")}
        known = [(name, value) for name, value in settings.items() if value is not None]
        yield "<h2>Settings</h2>" + _table(known, kind="settings")


def _count(history: list[dict], total: int) -> str:
    """'epoch 3 of 100', or '0 of 100' without a line of metrics."""
    counter = f"{records.counter_of(history[-1])} " if history else ""
    of = f" of {total:,}" if total else ""
    return f"{counter}{records.count_of(history):,}{of}"


def _by_number(grids: list[Path]) -> list[Path]:
    return sorted(grids, key=lambda path: records.kind_and_number(path)[1] or 0)


def _newest(grids: list[Path]) -> list[Path]:
    """The grid with the highest number of each kind, those drawn last first."""
    newest = {records.kind_and_number(path)[0]: path for path in _by_number(grids)}
    return sorted(newest.values(), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _words(grid: Path) -> str:
    """What a sample grid shows: 'samples, 10' for samples_010.png, and its own description."""
    kind, number = records.kind_and_number(grid)
    name = kind.replace("_", " ") + ("" if number is None else f", {number:,}")
    return words(": ".join(filter(None, (name, description(grid)))))


def _pictures(paths: dict[Path, str], kind: str = "pictures") -> str:
    """Pictures, with what they show, by their relative names.

    The time of writing makes a browser load changed ones.
    """
    figures = []
    for path, shown in paths.items():
        address, words = quote(os.fsencode(path.name)), html.escape(shown)
        figures.append(
            f'<figure><a href="{address}"><img src="{address}?{path.stat().st_mtime_ns}" '
            f'alt="{words}"></a><figcaption>{html.escape(path.name)}: {words}</figcaption></figure>'
        )
    return f'<div class="{kind}">{"".join(figures)}</div>'


def _numbers(values: dict[str, float]) -> list[tuple[str, str]]:
    texts = (f"{value:,}" if type(value) is int else f"{value:.5g}" for value in values.values())
    return list(zip(values, texts))


def _table(rows: Iterable[Iterable], heading: Iterable[str] = (), kind: str = "") -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heading)
    lines = "".join(
        "<tr>" + "".join(f"<td>{html_cell(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table class="{kind}"><tr>{head}</tr>{lines}</table></div>'
