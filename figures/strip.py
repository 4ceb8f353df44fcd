"""The strip of README: samples of the three models beside real digits."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from datasets import mnist
from figures.drawing import read_images
from figures.runs import Groups, with_folder
from harness import plots, records
from harness.errors import UserError

SIDE = 5  # digits in a row of each panel
WIDTH, GAP, TITLE = 1600, 10, 56  # pixels: of the picture, between panels, above them
# Kind of run -> the panel's title, and the name of its array beside the run's sample grids.
PANELS = {"vae": ("VAE (means)", "means"), "gan": ("GAN", "samples"), "nf": ("flow", "samples")}


def panels_of(groups: Groups) -> dict[str, np.ndarray] | None:
    """The panels by title, [25, 784] in [0, 1] each: samples at the end of a run of each kind.

    None if one of them has no run with sample grids.

    Raises:
        UserError: the arrays of a grid are damaged.
    """
    panels = {}
    for kind, (title, name) in PANELS.items():
        run = with_folder(groups[kind])
        grids = records.numbered(run.folder, "samples", ".npz") if run else {}
        if not grids:
            return None
        images, shape = read_images(grids[max(grids)], name)
        if shape != (28, 28) or len(images) < SIDE**2:
            raise UserError(f"{grids[max(grids)]} holds no samples (other images)")
        panels[title] = images[: SIDE**2]
    _, _, test = mnist()
    panels["real digits"] = test.images[: SIDE**2].numpy() / 255
    return panels


@plots.default_style
def save_strip(filename: Path, panels: dict[str, np.ndarray]) -> None:
    """Write the panels side by side as a PNG, WIDTH pixels wide."""
    side = (WIDTH - GAP * (len(panels) - 1)) / len(panels)
    figure = Figure(figsize=(WIDTH / plots.DPI, (side + TITLE) / plots.DPI))
    for n, (title, images) in enumerate(panels.items()):
        left, share = n * (side + GAP) / WIDTH, side / (side + TITLE)
        axes = figure.add_axes((left, 0, side / WIDTH, share))
        axes.imshow(plots.tile(images, SIDE), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=13, pad=5)
        axes.set_axis_off()
    plots.save_figure(figure, filename)
