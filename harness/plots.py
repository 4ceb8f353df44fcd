"""Curves and sample grids, drawn without pyplot: no display, backend or global state."""

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.ticker import MaxNLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from harness.errors import UserError, is_out_of_memory
from harness.files import read_regular, write_whole

# Okabe & Ito's colour-blind-safe palette.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# Beside the colours, for those who print in black. A solid line first.
LINES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1)))
STYLES = tuple(zip(COLOURS, LINES))  # of curves
LEVEL = (0, (1, 2.5))  # of horizontal lines
REFERENCE = "#555555"
COLUMN_INCHES = 4.5
DPI = 200
INSET_LEFT, INSET_BOTTOM = 0.3, 0.37  # of the axes
GAP, GAP_GREY = 1, 1.0  # between the tiles of a grid: pixels of an image, and their grey
GRID_PIXELS = 1200  # the longer side of a grid's PNG, about
# Drawing functions are in this context: a user's matplotlibrc would turn every digit upside down
# (image.origin) or ask for LaTeX. Many venues refuse Type 3 fonts; 42 is TrueType.
default_style = style.context(["default", {"pdf.fonttype": 42}], after_reset=True)


def save_grid(
    filename: Path,
    panels: dict,
    caption: str,
    n_columns: int | None = None,
    image_shape: tuple[int, int] = (28, 28),
) -> None:
    """Write sample images as a PNG, one grid per panel, and their arrays as an .npz beside it.

    The PNG has no words in it: its `Description` holds the caption and the panels' names.

    Args:
        filename: of the PNG. The .npz holds a uint8 array [n, n_pixels] for each panel, by its
            name, and the image_shape.
        panels: a panel's name -> its images, [n, n_pixels] in [0, 1], on any device. 1 is white.
        caption: what the grid shows.
        n_columns: images per row, by default so many that the grid is square.
        image_shape: (height, width) of an image.
    """
    panels = {name: _on_host(images) for name, images in panels.items()}
    tiles = [
        tile(images, n_columns or math.ceil(math.sqrt(len(images))), image_shape)
        for images in panels.values()
    ]
    arrays = {name: (images * 255).round().astype(np.uint8) for name, images in panels.items()}
    write_whole(
        Path(filename).with_suffix(".npz"),
        lambda file: np.savez_compressed(file, **arrays, image_shape=image_shape),
        flush=False,
    )
    names = f"; from left to right: {', '.join(panels)}" if len(panels) > 1 else ""
    save_image(filename, beside(tiles), f"{caption}{names}")


def save_image(filename: Path, image: np.ndarray, description: str = "") -> None:
    """Write an array [height, width] in [0, 1] as a PNG, enlarged by a whole number."""
    scale = max(1, round(GRID_PIXELS / max(image.shape)))
    pixels = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    picture = Image.fromarray(pixels.repeat(scale, axis=0).repeat(scale, axis=1))
    info = PngInfo()
    info.add_itxt("Description", description)
    write_whole(
        filename,
        lambda file: picture.save(file, "png", pnginfo=info),
        flush=False,
    )


def description(filename: Path) -> str:
    """What `save_image` wrote about a PNG; '' for other files and damaged ones."""
    try:
        with Image.open(filename) as picture:
            return str(picture.info.get("Description", ""))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return ""


def _on_host(images) -> np.ndarray:
    return np.asarray(images.cpu() if hasattr(images, "cpu") else images, dtype=np.float32)


def tile(images: np.ndarray, n_columns: int, image_shape: tuple[int, int] = (28, 28)) -> np.ndarray:
    """Images [n, n_pixels] as one array, row by row, GAP pixels apart; what is left is white."""
    height, width = image_shape
    missing = np.ones((-len(images) % n_columns, images.shape[1]), np.float32)
    rows = np.concatenate([images, missing]).reshape(-1, n_columns, height, width)
    rows = np.pad(rows, ((0, 0), (0, 0), (0, GAP), (0, GAP)), constant_values=GAP_GREY)
    tiled = rows.swapaxes(1, 2).reshape(-1, n_columns * (width + GAP))
    return tiled[:-GAP, :-GAP]


def beside(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays [height, width] from left to right on white, the shorter ones filled up with white."""
    height = max(len(tiled) for tiled in tiles)
    space = max(2, round(0.04 * max(tiled.shape[1] for tiled in tiles)))
    parts = []
    for tiled in tiles:
        below = height - len(tiled)
        parts.append(np.pad(tiled, ((0, below), (0, space)), constant_values=1.0))
    return np.concatenate(parts, axis=1)[:, :-space]


@dataclass(frozen=True)
class Curves:
    """The columns of `metrics.jsonl` that a script's plot shows.

    Attributes:
        file: the name of the plot's files, without a suffix.
        y_label: with its unit.
        columns: key -> label. Those that a run has not are left out.
        counter: the key of the x axis.
        levels: (y, label) of a horizontal line for each column, in its colour.
    """

    file: str
    y_label: str
    columns: dict[str, str]
    counter: str = "epoch"
    levels: tuple[tuple[float, str], ...] = ()

    def of_averaged_weights(self, decay: float) -> Self:
        """These curves with labels that say so if validation is of the weights' moving average.

        It can then lie below training, whose weights are not averaged.
        """
        if decay == 0:
            return self
        labels = {
            key: label.replace("validation", "validation of averaged weights")
            for key, label in self.columns.items()
        }
        return replace(self, columns=labels)

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

    Of several runs the mean is drawn, with a band (or bars) from minimum to maximum. Fewer than 10
    points are marked. Long curves are shown again inside, magnified, without their first
    tenth. Without a value of any column nothing is written.

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
    for (key, label), look in zip(curves.columns.items(), itertools.cycle(STYLES)):
        if points := _points(histories, curves.counter, key):
            drawn.append((label, look, *points))
    if not drawn:
        return
    last_x = max(x[-1] for _, _, x, _ in drawn)
    references = [reference for reference in references if reference[0] <= last_x]
    views = [axes]
    if last_x >= 20:
        views.append(_magnified(axes, drawn, references, last_x))
    for view in views:
        for label, look, x, y in drawn:
            _draw_curve(view, label, look, x, y, last_x, clipped=view is not axes)
        for x, y, label in references:
            view.plot(x, y, "*", color=REFERENCE, markersize=8, linestyle="none", label=label)
        lines = [(*level, colour) for level, colour in zip(curves.levels, COLOURS)]
        lines += [(*level, REFERENCE) for level in levels]
        for y, label, colour in lines:
            view.axhline(y, color=colour, linestyle=LEVEL, linewidth=0.9, label=label)
        view.grid(alpha=0.25, linewidth=0.5)
    if len(views) > 1:
        _make_room(axes, drawn, [y for y, _, _ in lines], last_x)
    axes.set(xlabel=curves.counter, ylabel=curves.y_label)
    _mark_the_end(axes, last_x)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels())))  # one entry per label
    figure.legend(
        handles.values(),
        handles.keys(),
        fontsize=8,
        frameon=False,
        loc="outside upper center",
        ncols=2,
    )
    save_with_pdf(figure, filename)


def save_with_pdf(figure: Figure, filename: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a figure as a PNG, and as a PDF of the same name; see `save_figure`."""
    for suffix in (".png", ".pdf"):
        save_figure(figure, Path(filename).with_suffix(suffix), metadata)


def _mark_the_end(axes: Axes, last_x: float) -> None:
    """Ticks at round numbers, and at the last x, such as 187,500 batches."""
    round_x = MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]).tick_values(0, last_x)
    ticks = [x for x in round_x if 0 <= x <= 0.9 * last_x] + [last_x]
    axes.set_xticks(ticks, [f"{x:,.0f}" for x in ticks])


def _points(histories, counter: str, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(x [n], y [n_runs, n]) of a metric where all runs have it; None if they never do."""
    by_x = [{line[counter]: line[key] for line in history if key in line} for history in histories]
    x = sorted(set.intersection(*map(set, by_x)))
    if not x:
        return None
    return np.array(x), np.array([[of_run[at] for at in x] for of_run in by_x])


def save_figure(figure: Figure, filename: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a figure whole, as a page may show the file that it replaces.

    Args:
        figure: drawn in `default_style`.
        filename: its suffix is the format.
        metadata: texts that the file holds, by a name that PNG and PDF have, such as "Title".
    """
    drawing = io.BytesIO()  # an error of the drawing is none of the file
    suffix = filename.suffix.removeprefix(".")
    figure.savefig(drawing, format=suffix, dpi=DPI, metadata=metadata)
    write_whole(filename, lambda file: file.write(drawing.getbuffer()), flush=False)


def _draw_curve(view: Axes, label, look, x, y, last_x, clipped) -> None:
    colour, line = look
    mean = y.mean(axis=0)
    few = len(x) < 10
    apart = few and last_x >= 10  # a line between them would show what nobody measured
    view.plot(
        x,
        mean,
        color=colour,
        linewidth=1.2,
        linestyle="none" if apart else line,
        marker="o" if few else None,
        markersize=4,
        label=label,
        clip_on=clipped or not few,  # a marker on the edge is not cut
    )
    if len(y) > 1:
        low, high = y.min(axis=0), y.max(axis=0)
        if apart:
            reach = [mean - low, high - mean]
            view.errorbar(x, mean, reach, fmt="none", ecolor=colour, elinewidth=1, capsize=2)
        else:
            view.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)


def draw_seeds(
    view: Axes, x: Sequence[float], y: Sequence[Sequence[float]], label: str, look: tuple
) -> None:
    """Draw a line of means, with a band from minimum to maximum of the `y` at each x."""
    colour, line = look
    mean = [float(np.mean(values)) for values in y]
    view.plot(x, mean, color=colour, linestyle=line, marker="o", markersize=4, label=label)
    low, high = [min(values) for values in y], [max(values) for values in y]
    view.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)


def _magnified(axes: Axes, drawn: list, references: list, last_x: float) -> Axes:
    """Axes inside `axes` for the last nine tenths, which the first points would flatten."""
    late = [value for _, _, x, y in drawn for value in y[:, x >= last_x / 10].flat]
    late += [y for x, y, _ in references if x >= last_x / 10]
    margin = 0.08 * (max(late) - min(late) or 1.0)
    magnified = axes.inset_axes([INSET_LEFT, INSET_BOTTOM, 0.98 - INSET_LEFT, 0.95 - INSET_BOTTOM])
    limits = (min(late) - margin, max(late) + margin)
    magnified.set(xlim=(last_x * 0.08, last_x * 1.02), ylim=limits)  # cuts no marker at a tenth
    magnified.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    magnified.xaxis.set_major_formatter("{x:,.0f}")
    magnified.tick_params(labelsize=7)
    return magnified


def _make_room(axes: Axes, drawn: list, levels: list, last_x: float) -> None:
    """Raise the upper end of the y axis until the inset and its labels hide no line."""
    late = max(y[:, x >= INSET_LEFT * last_x].max() for _, _, x, y in drawn if x[-1] == last_x)
    late = max([late, *levels])
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, max(top, bottom + (late - bottom) / (INSET_BOTTOM - 0.09)))


def read_picture(path: Path) -> np.ndarray:
    """A PNG as an array [height, width, 3 or 4] in [0, 1].

    Raises:
        UserError: it is damaged, or another kind of file.
    """
    try:
        image = imread(io.BytesIO(read_regular(path)), format="png")
    except Exception as error:  # foreign bytes can make a decoder raise anything
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path} is damaged, or no picture ({type(error).__name__})") from error
    return np.stack(3 * [image], axis=-1) if image.ndim == 2 else image


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
