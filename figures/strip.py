"""The strip of README: samples of the three models beside real digits."""

from pathlib import Path

import numpy as np
from matplotlib.image import imread

from datasets import mnist
from figures.runs import Groups, with_folder
from harness import plots
from harness.errors import UserError

SIDE = 5  # digits in a row of each panel
# Kind of run -> the panel's title, and the digits in a row of the run's sample grids.
PANELS = {"vae": ("VAE", 10), "gan": ("GAN", 5), "nf": ("flow", 5)}


def digits_of(picture: Path, n_columns: int) -> np.ndarray:
    """The first SIDE x SIDE digits of a PNG that `plots.save_grid` wrote: [SIDE^2, 784] in [0, 1].

    Args:
        picture: of square grids, side by side; the first one is read.
        n_columns: digits in a row of it.

    Raises:
        UserError: the picture shows no such grid.
    """
    grey = imread(picture)[..., :3].mean(axis=2)
    # A grid is mostly black, what is around it white.
    rows = np.flatnonzero((grey < 0.5).mean(axis=1) > 0.25)
    columns = np.flatnonzero((grey[rows] < 0.5).mean(axis=0) > 0.1) if len(rows) else rows
    if len(columns) < len(rows) or not len(rows):
        raise UserError(f"{picture} is no grid of samples")
    top, left, size = rows[0], columns[0], rows[-1] - rows[0] + 1
    middles = ((np.arange(28 * n_columns) + 0.5) * size / (28 * n_columns)).astype(int)
    grid = grey[np.ix_(top + middles, left + middles)][: 28 * SIDE, : 28 * SIDE]
    return grid.reshape(SIDE, 28, SIDE, 28).swapaxes(1, 2).reshape(SIDE**2, 784)


def save_strip(filename: Path, pictures: dict[str, Path]) -> None:
    """Write the strip as a PNG, from a sample grid of each kind in PANELS."""
    panels = {}
    for kind, (title, n_columns) in PANELS.items():
        panels[title] = digits_of(pictures[kind], n_columns)
    _, _, test = mnist()
    panels["real digits"] = test.images[: SIDE**2].float() / 255
    plots.save_grid(filename, panels)


def last_pictures(groups: Groups) -> dict[str, Path] | None:
    """The last sample grid of each kind's run; None if one is missing."""
    pictures = {}
    for kind in PANELS:
        run = with_folder(groups[kind])
        found = run.folder.glob("samples_[0-9]*.png") if run else []
        last = max(found, key=lambda path: int(path.stem.partition("_")[2]), default=None)
        if last is None:
            return None
        pictures[kind] = last
    return pictures
