"""How each figure is drawn: curves from metrics, the manifold from its array, pictures copied.

A drawing function takes runs that differ only in their seed, the figure's path, and a note to
write on it (or None). It returns a remark for the caption (or None).
"""

import io
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import median_filter
from scipy.special import ndtr  # the distribution function of N(0, 1)

from figures.kinds import GAN, SCRIPTS
from figures.runs import Runs, StoredRun
from harness import plots, records, references
from harness.errors import UserError, is_out_of_memory
from harness.files import read_regular, write_whole

Draw = Callable[[Runs, Path, str | None], str | None]

TICKS = (-2, -1, -0.5, 0, 0.5, 1, 2)  # values of z on the axes of the manifold
SPIKE = 0.15  # a spike rises by so much of what the curves span after the first tenth


def curves(runs: Runs, path: Path, note: str | None) -> str | None:
    """Draw the script's curves, means over the seeds, beside the published values.

    The remark names the spikes of single runs.
    """
    first = runs[0]
    shown = curves_of(first)
    marked, levels = [], []
    for key in shown.columns:
        marked += references.points(first.script, first.settings, key)
        levels += references.levels(first.script, first.settings, key)
    histories = [run.history for run in runs]
    plots.draw_curves(shown, histories, path, marked, list(dict.fromkeys(levels)), note)
    found = [
        f"{label} of seed {run.seed} at {run.counter} {', '.join(f'{x:,}' for x in at)}"
        for run in runs
        for label, at in spikes(run, shown).items()
    ]
    return f"spikes: {'; '.join(found)}" if found else None


def spikes(run: StoredRun, shown: plots.Curves) -> dict[str, list[int]]:
    """Label -> epochs or batches, after the first tenth, at which a curve stands out upwards.

    There it is clearly above the median of the seven lines around it.
    """
    curves = {}
    for key, label in shown.columns.items():
        points = [(line[run.counter], line[key]) for line in run.history if key in line]
        if len(points) >= 20:
            x, y = map(np.array, zip(*points))
            curves[label] = (x, y, x > x[-1] / 10)
    if not curves:
        return {}
    late_values = np.concatenate([y[late] for _, y, late in curves.values()])
    least = SPIKE * np.ptp(late_values)
    found = {
        label: x[late & (y - median_filter(y, 7, mode="mirror") > least)].tolist()
        for label, (x, y, late) in curves.items()
    }
    return {label: at for label, at in found.items() if at}


def curves_of(run: StoredRun) -> plots.Curves:
    """What the script of a run plots."""
    script = SCRIPTS[run.script]
    if run.script == GAN:
        return script.loss_curves(run.settings["real_label"], run.settings["fake_label"])
    return script.CURVES.of_averaged_weights(run.settings["ema_decay"])


def picture(name: str) -> Draw:
    """A drawing function that copies this picture of the first run."""
    return lambda runs, path, note: _copy(runs[0].folder / name, path, note)


@plots.default_style
def manifold(runs: Runs, path: Path, note: str | None) -> None:
    """Draw the first run's last data manifold with z on its axes, as a PNG and a PDF.

    Cells have equal probability under the prior, so the ticks stand at quantiles.
    """
    grids = records.numbered(runs[0].folder, "manifold", ".npz")
    if not grids:
        raise UserError(f"{runs[0].folder / 'manifold_[0-9]*.npz'} is missing")
    images, shape = read_images(grids[max(grids)], "means")
    side = math.isqrt(len(images))
    if side**2 != len(images):
        raise UserError(f"{grids[max(grids)]} holds no samples (other images)")
    figure = Figure(figsize=(plots.COLUMN_INCHES, plots.COLUMN_INCHES), layout="constrained")
    axes = figure.subplots()
    tiled = plots.tile(images, side, shape)
    axes.imshow(tiled, cmap="gray", vmin=0, vmax=1, extent=(0, 1, 0, 1), aspect=shape[0] / shape[1])
    labels = [f"{z:g}".replace("-", "−") for z in TICKS]
    axes.set_xticks(ndtr(TICKS), labels)
    axes.set_yticks(ndtr(TICKS), labels)
    axes.set(xlabel="$z_1$", ylabel="$z_2$")
    if note is not None:
        axes.set_title(note, fontsize=9)
    plots.save_with_pdf(figure, path)


def read_images(path: Path, name: str) -> tuple[np.ndarray, tuple[int, int]]:
    """(images, [n, n_pixels] in [0, 1]; their height and width) of an array beside a sample grid.

    Raises:
        UserError: the file is damaged, or has no such array.
    """
    try:
        with np.load(io.BytesIO(read_regular(path)), allow_pickle=False) as arrays:
            images = arrays[name]
            height, width = arrays["image_shape"].tolist() if "image_shape" in arrays else (28, 28)
            if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != height * width:
                raise ValueError("other images")
    except Exception as error:  # foreign bytes can make numpy and zipfile raise anything
        if is_out_of_memory(error):
            raise
        raise UserError(f"{path} holds no samples ({type(error).__name__})") from error
    return images / 255, (height, width)


def samples(at: float) -> Draw:
    """A drawing function that copies the first run's samples after `at` epochs or batches.

    If there are none, it takes the last ones before, and the remark says so.
    """

    def draw(runs, path, note):
        pattern = runs[0].folder / "samples_[0-9]*.png"
        by_count = records.numbered(runs[0].folder, "samples", ".png")
        count = max((count for count in by_count if count <= at), default=None)
        _copy(by_count.get(count, pattern), path, note)
        return None if at == count else f"shown after {runs[0].in_words(count)}"

    return draw


def _copy(source: Path, path: Path, note: str | None) -> None:
    if not source.exists():
        raise UserError(f"{source} is missing")
    if note is None:
        plots.read_picture(source)  # a damaged one is not passed on
        content = source.read_bytes()
        write_whole(path, lambda file: file.write(content))
    else:
        plots.save_annotated(source, path, note)
