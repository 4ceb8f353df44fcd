"""The strip of README: samples of the three models beside real digits."""

import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from datasets import mnist
from figures.runs import Groups, with_folder
from harness import plots, records
from harness.errors import UserError, is_out_of_memory
from harness.files import read_regular

SIDE = 5  # digits in a row of each panel
# Kind of run -> the panel's title, and the name of its array beside the run's sample grids.
PANELS = {"vae": ("VAE", "means"), "gan": ("GAN", "samples"), "nf": ("flow", "samples")}


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
        panels[title] = _read_samples(grids[max(grids)], name)
    _, _, test = mnist()
    panels["real digits"] = test.images[: SIDE**2].numpy() / 255
    return panels


def _read_samples(path: Path, name: str) -> np.ndarray:
    """The first images of an array beside a sample grid, [25, 784] in [0, 1].

    Raises:
        UserError: the file is damaged, or has no such array.
    """
    try:
        with np.load(io.BytesIO(read_regular(path)), allow_pickle=False) as arrays:
            images = arrays[name][: SIDE**2]
            if images.dtype != np.uint8 or images.shape != (SIDE**2, 784):
                raise ValueError("other images")
    except Exception as error:  # foreign bytes can make numpy and zipfile raise anything
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path} holds no samples ({type(error).__name__})") from error
    return images / 255


@plots.default_style
def save_strip(filename: Path, panels: dict[str, np.ndarray]) -> None:
    """Write the panels side by side as a PNG."""
    figure = Figure(figsize=(plots.COLUMN_INCHES * len(panels), 4.85), layout="constrained")
    for axes, (title, images) in zip(figure.subplots(1, len(panels)), panels.items()):
        axes.imshow(plots.tile(images, SIDE), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    plots.save_figure(figure, filename, flush=True, bbox_inches="tight", pad_inches=0.05)
