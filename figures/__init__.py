"""Pictures of runs: curves and sample grids.

Every function writes files and returns nothing. Figures are built without pyplot, so that no display, backend or
global state is involved.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.ticker import MaxNLocator

# Okabe & Ito's colour-blind-safe palette.
TRAIN, VALIDATION, THIRD, REFERENCE = '#0072B2', '#D55E00', '#009E73', '#555555'
COLUMN_INCHES = 4.5
DPI = 200


def save_grid(filename, panels, n_columns):
    """Write sample images as a PNG: one grid per panel, side by side. White is 1, black is 0, for every image.

    Args:
        panels: dict from a panel's title to its images, an array or tensor [n, 784] with values in [0, 1].
        n_columns: images per row; the grid fills from the top left, row by row.
    """
    tiles = {title: tile(images, n_columns) for title, images in panels.items()}
    height, width = next(iter(tiles.values())).shape
    figure = Figure(figsize=(COLUMN_INCHES * len(tiles), COLUMN_INCHES * height / width + 0.35), layout='constrained')
    for axes, (title, image) in zip(np.atleast_1d(figure.subplots(1, len(tiles))), tiles.items()):
        axes.imshow(image, cmap='gray', vmin=0, vmax=1, interpolation='nearest')
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    figure.savefig(filename, dpi=DPI, bbox_inches='tight', pad_inches=0.05)


def tile(images, n_columns):
    """Images [n, 784] as one array [n_rows * 28, n_columns * 28], row by row; what is left of the last row is white."""
    images = np.asarray(images, dtype=np.float32)
    missing = -len(images) % n_columns
    images = np.concatenate([images, np.ones((missing, images.shape[1]), np.float32)]).reshape(-1, n_columns, 28, 28)
    return images.swapaxes(1, 2).reshape(-1, n_columns * 28)


def save_curves(filename, curves, x_label, y_label, references=(), levels=(), inset=True, title=None):
    """Write curves as PNG and as PDF.

    Args:
        filename: of the PNG; the PDF stands beside it.
        curves: dict from a label to (colour, x values, y values). Of y values [n_seeds, n] the mean is drawn, in a band of
            one standard deviation. Fewer than 10 points are marked.
        x_label, y_label: with their units.
        references: (x, y, label) of points to mark; x beyond the end of the curves is not shown.
        levels: (y, colour, label) of horizontal lines.
        inset: show the last nine tenths once more, magnified, which the first points would flatten.
        title: a line above the axes.
    """
    figure = Figure(figsize=(COLUMN_INCHES * 1.3, COLUMN_INCHES), layout='constrained')
    axes = figure.subplots()
    if title is not None:
        axes.set_title(title, fontsize=9)
    curves = {label: (colour, np.asarray(x), np.atleast_2d(y)) for label, (colour, x, y) in curves.items()}
    last_x = max(x[-1] for _, x, _ in curves.values())
    references = [reference for reference in references if reference[0] <= last_x]
    views = [axes]
    if inset and last_x >= 20:
        late = [value for _, x, y in curves.values() for value in y[:, x >= last_x / 10].flat]
        late += [y for x, y, _ in references if x >= last_x / 10]
        margin = 0.08 * (max(late) - min(late))
        magnified = axes.inset_axes([0.3, 0.35, 0.68, 0.6])
        magnified.set(xlim=(last_x / 10, last_x * 1.02), ylim=(min(late) - margin, max(late) + margin))
        magnified.tick_params(labelsize=7)
        views.append(magnified)
    for view in views:
        for label, (colour, x, y) in curves.items():
            mean = y.mean(axis=0)
            line = 'none' if len(x) < 10 and last_x >= 10 else '-'
            view.plot(x, mean, color=colour, linewidth=1.2, linestyle=line, marker='o' if len(x) < 10 else None,
                      markersize=4, label=label)
            if len(y) > 1:
                spread = y.std(axis=0, ddof=1)
                view.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.25, linewidth=0)
        for x, y, label in references:
            view.plot(x, y, '*', color=REFERENCE, markersize=8, linestyle='none', label=label)
        for y, colour, label in levels:
            view.axhline(y, color=colour, linestyle='--', linewidth=0.9, label=label)
        view.grid(alpha=0.25, linewidth=0.5)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    handles = dict(zip(*reversed(axes.get_legend_handles_labels())))  # one entry per label
    figure.legend(handles.values(), handles.keys(), fontsize=8, frameon=False, loc='outside upper center', ncols=3)
    for suffix in ('.png', '.pdf'):
        figure.savefig(Path(filename).with_suffix(suffix), dpi=DPI)


def save_annotated(source, filename, note):
    """Write a copy of the PNG `source` with a line of text above it, pixel for pixel the same below."""
    image = imread(source)
    height, width = image.shape[:2]
    strip = round(0.3 * DPI)
    figure = Figure(figsize=(width / DPI, (height + strip) / DPI), dpi=DPI)
    figure.figimage(image, 0, 0)
    figure.text(0.5, (height + strip / 2) / (height + strip), note, ha='center', va='center', fontsize=9)
    figure.savefig(filename, dpi=DPI)
