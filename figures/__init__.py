"""Pictures of runs: curves and sample grids.

Every function writes files and returns nothing. Figures are built without pyplot, so that no display, backend or
global state is involved.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

# Okabe & Ito's colour-blind-safe palette.
TRAIN, VALIDATION, THIRD, REFERENCE = '#0072B2', '#D55E00', '#009E73', '#555555'
COLUMN_INCHES = 4.5


def save_grid(filename, panels, n_columns):
    """Write sample images as a PNG: one square grid per panel, side by side. White is 1, black is 0, for every image.

    Args:
        panels: dict from a panel's title to its images, an array or tensor [n, 784] with values in [0, 1].
        n_columns: images per row; the grid fills from the top left, row by row.
    """
    figure = Figure(figsize=(COLUMN_INCHES * len(panels), COLUMN_INCHES * 1.08), layout='constrained')
    for axes, (title, images) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items()):
        axes.imshow(tile(images, n_columns), cmap='gray', vmin=0, vmax=1, interpolation='nearest')
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    figure.savefig(filename, dpi=200)


def tile(images, n_columns):
    """Images [n, 784] as one array, row by row, [n / n_columns * 28, n_columns * 28]."""
    images = np.asarray(images, dtype=np.float32).reshape(-1, n_columns, 28, 28)
    return images.swapaxes(1, 2).reshape(-1, n_columns * 28)


def save_curves(filename, curves, x_label, y_label, references=()):
    """Write curves as PNG and as PDF. An inset shows the later part that the first points would flatten.

    Args:
        filename: of the PNG; the PDF stands beside it.
        curves: dict from a label to (colour, x values, y values).
        x_label, y_label: with their units.
        references: (x, y, label) of points to mark; x beyond the end of the curves is not shown.
    """
    figure = Figure(figsize=(COLUMN_INCHES * 1.3, COLUMN_INCHES), layout='constrained')
    axes = figure.subplots()
    last_x = max(max(x) for _, x, _ in curves.values())
    views = [axes]
    if last_x >= 20:
        late = [y for _, xs, ys in curves.values() for x, y in zip(xs, ys) if x > last_x / 10]
        late += [y for x, y, _ in references if x <= last_x]
        margin = 0.1 * (max(late) - min(late))
        inset = axes.inset_axes([0.36, 0.4, 0.62, 0.4])
        inset.set(xlim=(last_x / 10, last_x * 1.02), ylim=(min(late) - margin, max(late) + margin))
        inset.tick_params(labelsize=7)
        views.append(inset)
    for view in views:
        marker = 'o' if last_x < 3 else None
        for label, (colour, x, y) in curves.items():
            view.plot(x, y, color=colour, marker=marker, linewidth=1.2, label=label)
        for x, y, label in references:
            if x <= last_x:
                view.plot(x, y, '*', color=REFERENCE, markersize=9, linestyle='none', label=label, clip_on=False)
        view.grid(alpha=0.25, linewidth=0.5)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.legend(fontsize=8, frameon=False, loc='upper right')
    for suffix in ('.png', '.pdf'):
        figure.savefig(Path(filename).with_suffix(suffix), dpi=200)
