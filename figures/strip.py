"""The strip of README: samples of the three models beside real digits."""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from matplotlib.figure import Figure

from datasets import mnist
from figures.runs import Groups, with_folder
from harness import plots
from harness.errors import UserError
from harness.files import write_whole

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
        grids = run.folder.glob("samples_[0-9]*.npz") if run else []
        last = max(grids, key=lambda path: int(path.stem.partition("_")[2]), default=None)
        if last is None:
            return None
        try:
            with np.load(last) as arrays:
                panels[title] = arrays[name][: SIDE**2].reshape(-1, 784) / 255
        except (ValueError, KeyError, EOFError, BadZipFile) as error:
            raise UserError(f"{last} holds no samples") from error
    _, _, test = mnist()
    panels["real digits"] = test.images[: SIDE**2].numpy() / 255
    return panels


def save_strip(filename: Path, panels: dict[str, np.ndarray]) -> None:
    """Write the panels side by side as a PNG."""
    figure = Figure(figsize=(plots.COLUMN_INCHES * len(panels), 4.85), layout="constrained")
    for axes, (title, images) in zip(figure.subplots(1, len(panels)), panels.items()):
        axes.imshow(plots.tile(images, SIDE), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    options = {"format": "png", "dpi": plots.DPI, "bbox_inches": "tight", "pad_inches": 0.05}
    write_whole(filename, lambda file: figure.savefig(file, **options))
