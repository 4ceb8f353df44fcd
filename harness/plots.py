"""Curves and sample grids, drawn without pyplot: no display, backend or global state."""

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.ticker import MaxNLocator

from harness.errors import UserError, is_out_of_memory
from harness.files import read_regular, write_whole

# Okabe & Ito's colour-blind-safe palette.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
REFERENCE = "#555555"
COLUMN_INCHES = 4.5
DPI = 200
# Drawing functions are in this context: a user's matplotlibrc would turn every digit upside down
# (image.origin) or ask for LaTeX.
default_style = style.context("default", after_reset=True)


@default_style
def save_grid(filename: Path, panels: dict, caption: str, n_columns: int | None = None) -> None:
    """Write sample images as a PNG, one grid per panel, and their arrays as an .npz beside it.

    Args:
        filename: of the PNG. The .npz holds a uint8 array [n, 784] for each panel, by its name.
        panels: a panel's name -> its images, [n, 784] in [0, 1], on any device. 1 is white.
        caption: above the panels, with their names if there are several.
        n_columns: images per row, by default so many that the grid is square.
    """
    panels = {name: _on_host(images) for name, images in panels.items()}
    tiles = [
        tile(images, n_columns or math.ceil(math.sqrt(len(images)))) for images in panels.values()
    ]
    height, width = tiles[0].shape
    size = (COLUMN_INCHES * len(tiles), COLUMN_INCHES * height / width + 0.35)
    figure = Figure(figsize=size, layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(1, len(tiles)))
    for axes, name, image in zip(all_axes, panels, tiles):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(f"{caption}: {name}" if len(tiles) > 1 else caption, fontsize=10)
        axes.set_axis_off()
    arrays = {name: (images * 255).round().astype(np.uint8) for name, images in panels.items()}
    write_whole(
        Path(filename).with_suffix(".npz"),
        lambda file: np.savez_compressed(file, **arrays),
        flush=False,
    )
    save_figure(figure, Path(filename), bbox_inches="tight", pad_inches=0.05)


def _on_host(images) -> np.ndarray:
    return np.asarray(images.cpu() if hasattr(images, "cpu") else images, dtype=np.float32)


def tile(images: np.ndarray, n_columns: int) -> np.ndarray:
    """Images [n, 784] as one array [n_rows * 28, n_columns * 28]; an unfilled row ends in white."""
    missing = np.ones((-len(images) % n_columns, images.shape[1]), np.float32)
    rows = np.concatenate([images, missing]).reshape(-1, n_columns, 28, 28)
    return rows.swapaxes(1, 2).reshape(-1, n_columns * 28)


@dataclass(frozen=True)
class Curves:
    """The columns of `metrics.jsonl` that a script's plot shows.

    Attributes:
        file: the name of the plot's files, without a suffix.
        y_label: with its unit.
        columns: key -> label. Those that a run has not are left out.
        counter: the key of the x axis.
        inset: show the last nine tenths again, magnified.
        levels: (y, label) of a horizontal line for each column, in its colour.
    """

    file: str
    y_label: str
    columns: dict[str, str]
    counter: str = "epoch"
    inset: bool = True
    levels: tuple[tuple[float, str], ...] = ()

    def save(self, filename: Path, **columns: Sequence[float]) -> None:
        """Write the plot of one run, a value per epoch and column, to a PNG and a PDF."""
        keys = columns.keys()
        lines = enumerate(zip(*columns.values(), strict=True), start=1)
        history = [{self.counter: n, **dict(zip(keys, values))} for n, values in lines]
        draw_curves(self, [history], filename)


@default_style
def draw_curves(
    curves: Curves,
    histories: Sequence[list[dict]],
    filename: Path,
    references: Sequence[tuple[float, float, str]] = (),
    levels: Sequence[tuple[float, str]] = (),
    title: str | None = None,
) -> None:
    """Write the curves of one or several runs as a PNG, and as a PDF beside it.

    Of several runs the mean is drawn, with a band (or bars) of one standard deviation. Fewer than
    10 points are marked. Without a value of any column nothing is written.

    Args:
        curves: what to draw.
        histories: the lines of `metrics.jsonl` of runs that differ only in their seed.
        filename: of the PNG.
        references: (x, y, label) of points to mark; x beyond the end of the curves is left out.
        levels: (y, label) of published values, drawn as horizontal lines.
        title: a line above the axes.
    """
    figure = Figure(figsize=(COLUMN_INCHES * 1.3, COLUMN_INCHES), layout="constrained")
    axes = figure.subplots()
    if title is not None:
        axes.set_title(title, fontsize=9)
    drawn = []
    for (key, label), colour in zip(curves.columns.items(), itertools.cycle(COLOURS)):
        if points := _points(histories, curves.counter, key):
            drawn.append((label, colour, *points))
    if not drawn:
        return
    last_x = max(x[-1] for _, _, x, _ in drawn)
    references = [reference for reference in references if reference[0] <= last_x]
    views = [axes]
    if curves.inset and last_x >= 20:
        views.append(_magnified(axes, drawn, references, last_x))
    for view in views:
        for label, colour, x, y in drawn:
            _draw_curve(view, label, colour, x, y, last_x)
        for x, y, label in references:
            view.plot(x, y, "*", color=REFERENCE, markersize=8, linestyle="none", label=label)
        lines = [(*level, colour) for level, colour in zip(curves.levels, COLOURS)]
        lines += [(*level, REFERENCE) for level in levels]
        for y, label, colour in lines:
            view.axhline(y, color=colour, linestyle="--", linewidth=0.9, label=label)
        view.grid(alpha=0.25, linewidth=0.5)
    axes.set(xlabel=curves.counter, ylabel=curves.y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    handles = dict(zip(*reversed(axes.get_legend_handles_labels())))  # one entry per label
    figure.legend(
        handles.values(),
        handles.keys(),
        fontsize=8,
        frameon=False,
        loc="outside upper center",
        ncols=3,
    )
    for suffix in (".png", ".pdf"):
        save_figure(figure, Path(filename).with_suffix(suffix))


def _points(histories, counter: str, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(x [n], y [n_runs, n]) of a metric where all runs have it; None if they never do."""
    by_x = [{line[counter]: line[key] for line in history if key in line} for history in histories]
    x = sorted(set.intersection(*map(set, by_x)))
    if not x:
        return None
    return np.array(x), np.array([[of_run[at] for at in x] for of_run in by_x])


def save_figure(figure: Figure, filename: Path, flush: bool = False, **options) -> None:
    """Write a figure whole, as a page may show the file that it replaces.

    Args:
        figure: drawn in `default_style`.
        filename: its suffix is the format.
        flush: see `files.write_whole`.
        options: of `Figure.savefig`.
    """
    drawing = io.BytesIO()  # an error of the drawing is none of the file
    figure.savefig(drawing, format=filename.suffix.removeprefix("."), dpi=DPI, **options)
    write_whole(filename, lambda file: file.write(drawing.getbuffer()), flush=flush)


def _draw_curve(view: Axes, label, colour, x, y, last_x) -> None:
    mean = y.mean(axis=0)
    few = len(x) < 10
    apart = few and last_x >= 10  # a line between them would show what nobody measured
    view.plot(
        x,
        mean,
        color=colour,
        linewidth=1.2,
        linestyle="none" if apart else "-",
        marker="o" if few else None,
        markersize=4,
        label=label,
    )
    if len(y) > 1:
        spread = y.std(axis=0, ddof=1)
        if apart:
            view.errorbar(x, mean, spread, fmt="none", ecolor=colour, elinewidth=1, capsize=2)
        else:
            low, high = mean - spread, mean + spread
            view.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)


def _magnified(axes: Axes, drawn: list, references: list, last_x: float) -> Axes:
    """Axes inside `axes` for the last nine tenths, which the first points would flatten."""
    late = [value for _, _, x, y in drawn for value in y[:, x >= last_x / 10].flat]
    late += [y for x, y, _ in references if x >= last_x / 10]
    margin = 0.08 * (max(late) - min(late) or 1.0)
    magnified = axes.inset_axes([0.3, 0.35, 0.68, 0.6])
    limits = (min(late) - margin, max(late) + margin)
    magnified.set(xlim=(last_x / 10, last_x * 1.02), ylim=limits)
    magnified.tick_params(labelsize=7)
    return magnified


def read_picture(path: Path) -> np.ndarray:
    """A PNG as an array [height, width, channels] in [0, 1].

    Raises:
        UserError: it is damaged, or another kind of file.
    """
    try:
        return imread(io.BytesIO(read_regular(path)), format="png")
    except Exception as error:  # foreign bytes can make a decoder raise anything
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path} is damaged, or no picture ({type(error).__name__})") from error


@default_style
def save_annotated(source: Path, filename: Path, note: str) -> None:
    """Write a copy of the PNG `source` with a line of text above it, its pixels unchanged."""
    image = read_picture(source)
    height, width = image.shape[:2]
    strip = round(0.3 * DPI)
    figure = Figure(figsize=(width / DPI, (height + strip) / DPI), dpi=DPI)
    figure.figimage(image, 0, 0)
    middle = (height + strip / 2) / (height + strip)
    figure.text(0.5, middle, note, ha="center", va="center", fontsize=9)
    save_figure(figure, Path(filename))
