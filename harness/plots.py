"""Curves and sample grids, drawn without pyplot: no display, backend or global state."""

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.ticker import MaxNLocator

from harness.files import write_whole

# Okabe & Ito's colour-blind-safe palette.
TRAIN, VALIDATION, THIRD, REFERENCE = "#0072B2", "#D55E00", "#009E73", "#555555"
COLUMN_INCHES = 4.5
DPI = 200


def save_grid(filename: Path, panels: dict, n_columns: int | None = None) -> None:
    """Write sample images as a PNG: one grid per panel, side by side. 1 is white, 0 is black.

    Args:
        filename: of the PNG.
        panels: a panel's title -> its images, [n, 784] in [0, 1], on any device.
        n_columns: images per row, by default so many that the grid is square.
    """
    tiles = {
        title: tile(images, n_columns or math.ceil(math.sqrt(len(images))))
        for title, images in panels.items()
    }
    height, width = next(iter(tiles.values())).shape
    size = (COLUMN_INCHES * len(tiles), COLUMN_INCHES * height / width + 0.35)
    figure = Figure(figsize=size, layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(1, len(tiles)))
    for axes, (title, image) in zip(all_axes, tiles.items()):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    _write(figure, Path(filename), bbox_inches="tight", pad_inches=0.05)


def tile(images, n_columns: int) -> np.ndarray:
    """Images [n, 784] as one array [n_rows * 28, n_columns * 28]; an unfilled row ends in white."""
    images = np.asarray(images.cpu() if hasattr(images, "cpu") else images, dtype=np.float32)
    missing = np.ones((-len(images) % n_columns, images.shape[1]), np.float32)
    rows = np.concatenate([images, missing]).reshape(-1, n_columns, 28, 28)
    return rows.swapaxes(1, 2).reshape(-1, n_columns * 28)


def save_epochs(
    filename: Path,
    curves: dict,
    y_label: str,
    references: list | tuple = (),
    title: str | None = None,
) -> None:
    """Write curves over epochs 1, 2, ... with `save_curves`.

    Args:
        filename: of the PNG; the PDF stands beside it.
        curves: label -> y values [n] or [n_seeds, n], or (x values, y values) of chosen epochs, or
            None. The first three get the colours of training, validation and a third curve.
        y_label: with its unit.
        references: as in `save_curves`.
        title: a line above the axes.
    """
    coloured = {}
    for (label, y), colour in zip(curves.items(), (TRAIN, VALIDATION, THIRD)):
        if y is None:
            continue
        x, y = y if isinstance(y, tuple) else (range(1, np.shape(y)[-1] + 1), y)
        coloured[label] = (colour, x, y)
    save_curves(filename, coloured, "epoch", y_label, references, title=title)


def save_curves(
    filename: Path,
    curves: dict,
    x_label: str,
    y_label: str,
    references: list | tuple = (),
    levels: list | tuple = (),
    inset: bool = True,
    title: str | None = None,
) -> None:
    """Write curves as a PNG, and as a PDF beside it.

    Args:
        filename: of the PNG.
        curves: label -> (colour, x values, y values). For y values [n_seeds, n] the mean is
            drawn, with a band (or bars) of one standard deviation. Fewer than 10 points are marked.
        x_label, y_label: with their units.
        references: (x, y, label) of points to mark; x beyond the end of the curves is left out.
        levels: (y, colour, label) of horizontal lines.
        inset: show the last nine tenths again, magnified.
        title: a line above the axes.
    """
    figure = Figure(figsize=(COLUMN_INCHES * 1.3, COLUMN_INCHES), layout="constrained")
    axes = figure.subplots()
    if title is not None:
        axes.set_title(title, fontsize=9)
    curves = {
        label: (colour, np.asarray(x), np.atleast_2d(y)) for label, (colour, x, y) in curves.items()
    }
    last_x = max(x[-1] for _, x, _ in curves.values())
    references = [reference for reference in references if reference[0] <= last_x]
    views = [axes]
    if inset and last_x >= 20:
        views.append(_magnified(axes, curves, references, last_x))
    for view in views:
        for label, (colour, x, y) in curves.items():
            _draw_curve(view, label, colour, x, y, last_x)
        for x, y, label in references:
            view.plot(x, y, "*", color=REFERENCE, markersize=8, linestyle="none", label=label)
        for y, colour, label in levels:
            view.axhline(y, color=colour, linestyle="--", linewidth=0.9, label=label)
        view.grid(alpha=0.25, linewidth=0.5)
    axes.set(xlabel=x_label, ylabel=y_label)
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
        _write(figure, Path(filename).with_suffix(suffix))


def _write(figure: Figure, filename: Path, **options) -> None:
    """Write a figure whole, as a page may show the file that it replaces."""
    kind = filename.suffix.removeprefix(".")

    def write(file):
        figure.savefig(file, format=kind, dpi=DPI, **options)

    write_whole(filename, write, flush=False)


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


def _magnified(axes: Axes, curves: dict, references: list, last_x: float) -> Axes:
    """Axes inside `axes` for the last nine tenths, which the first points would flatten."""
    late = [value for _, x, y in curves.values() for value in y[:, x >= last_x / 10].flat]
    late += [y for x, y, _ in references if x >= last_x / 10]
    margin = 0.08 * (max(late) - min(late))
    magnified = axes.inset_axes([0.3, 0.35, 0.68, 0.6])
    limits = (min(late) - margin, max(late) + margin)
    magnified.set(xlim=(last_x / 10, last_x * 1.02), ylim=limits)
    magnified.tick_params(labelsize=7)
    return magnified


def save_annotated(source: Path, filename: Path, note: str) -> None:
    """Write a copy of the PNG `source` with a line of text above it, its pixels unchanged."""
    image = imread(source)
    height, width = image.shape[:2]
    strip = round(0.3 * DPI)
    figure = Figure(figsize=(width / DPI, (height + strip) / DPI), dpi=DPI)
    figure.figimage(image, 0, 0)
    middle = (height + strip / 2) / (height + strip)
    figure.text(0.5, middle, note, ha="center", va="center", fontsize=9)
    _write(figure, Path(filename))
