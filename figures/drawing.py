"""How each figure is drawn: curves from metrics, pictures copied from the run folder.

A drawing function takes runs that differ only in their seed, the figure's path, and a note to
write on it (or None). It returns a remark for the caption (or None).
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import a3_gan_template as gan
import a3_nf_template as nf
import a3_vae_template as vae
from figures.runs import Runs
from harness import plots, records
from harness.errors import UserError
from harness.files import write_whole

Draw = Callable[[Runs, Path, str | None], str | None]

# Validation values that the report's Figures 2 and 14 show at these epochs.
REPORT_EPOCHS = (1, 2, 5, 10, 20, 40, 60, 80, 100)
REPORT_ELBO = (118.24, 100.11, 90.14, 86.03, 83.29, 81.15, 80.04, 79.46, 79.04)
REPORT_BPD = (2.098, 2.009, 1.940, 1.880, 1.862, 1.826, 1.797, 1.807, 1.804)
LAST = math.inf


def elbo_curves(runs: Runs, path: Path, note: str | None) -> None:
    """Draw negative ELBO by epoch, with the report's protocol also as the report counts it."""
    *curves, report = vae.CURVES
    if runs[0].args.protocol == "report":
        stars = [(*xy, "the report's curve") for xy in zip(REPORT_EPOCHS, REPORT_ELBO)]
        (report_curve,) = _curves(runs, report)
    else:
        stars, report_curve = [vae.GRADED["standard"][0].star()], None
    vae.save_elbo_plot(*_curves(runs, *curves), path, stars, report_curve, note)


def gan_losses(runs: Runs, path: Path, note: str | None) -> None:
    """Draw the losses of generator and discriminator by batch."""
    (batches, *_), *losses = _curves(runs, "batch", "g_loss", "d_loss")
    labels = runs[0].args.real_label, runs[0].args.fake_label
    gan.save_loss_plot(batches, *losses, path, labels, gan.REFERENCE_LOSS, note)


def bpd_curves(runs: Runs, path: Path, note: str | None) -> None:
    """Draw bits per dimension by epoch."""
    stars = [(*xy, "the report's curve (shifted)") for xy in zip(REPORT_EPOCHS, REPORT_BPD)]
    points = [records.points(run.history, "epoch", "val_bpd_shifted") for run in runs]
    by_epoch = [dict(zip(*xy)) if xy else {} for xy in points]
    epochs = sorted(set.intersection(*map(set, by_epoch)))  # those that every run has
    values = [[bpd[epoch] for epoch in epochs] for bpd in by_epoch]
    shifted = (epochs, values) if epochs else None
    nf.save_bpd_plot(*_curves(runs, "train_bpd", "val_bpd"), path, stars, shifted, note)


def _curves(runs: Runs, *keys: str) -> Iterator[list[list[float]]]:
    """For each metric its values in every run."""
    return map(list, zip(*(records.columns(run.history, *keys) for run in runs)))


CURVES = (elbo_curves, gan_losses, bpd_curves)  # of all seeds; the others show the first run


def picture(name: str) -> Draw:
    """A drawing function that copies this picture."""
    return lambda runs, path, note: _copy(runs[0].folder / name, path, note)


def samples(at: float, name: str = "samples") -> Draw:
    """A drawing function that copies the samples after `at` epochs or batches.

    If there are none, it takes the last ones before, and the remark says so. LAST is the end.
    """

    def draw(runs, path, note):
        pattern = runs[0].folder / f"{name}_[0-9]*.png"
        files = pattern.parent.glob(pattern.name)
        by_count = {int(file.stem.rpartition("_")[2]): file for file in files}
        count = max((count for count in by_count if count <= at), default=None)
        _copy(by_count.get(count, pattern), path, note)
        return None if at in (count, LAST) else f"shown after {runs[0].in_words(count)}"

    return draw


def _copy(source: Path, path: Path, note: str | None) -> None:
    if not source.exists():
        raise UserError(f"{source} is missing")
    if note is None:
        content = source.read_bytes()
        write_whole(path, lambda file: file.write(content))
    else:
        plots.save_annotated(source, path, note)
