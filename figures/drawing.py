"""How each figure is drawn: curves from metrics, pictures copied from the run folder.

A drawing function takes runs that differ only in their seed, the figure's path, and a note to
write on it (or None). It returns a remark for the caption (or None).
"""

import math
from collections.abc import Callable
from pathlib import Path

from figures.kinds import GAN, SCRIPTS
from figures.runs import Runs, StoredRun
from harness import plots, records, references
from harness.errors import UserError
from harness.files import write_whole

Draw = Callable[[Runs, Path, str | None], str | None]

LAST = math.inf


def curves(runs: Runs, path: Path, note: str | None) -> None:
    """Draw the script's curves, means over the seeds, beside the published values."""
    first = runs[0]
    shown = curves_of(first)
    marked, levels = [], []
    for key in shown.columns:
        marked += references.points(first.script, first.settings, key)
        levels += references.levels(first.script, first.settings, key)
    histories = [run.history for run in runs]
    plots.draw_curves(shown, histories, path, marked, list(dict.fromkeys(levels)), note)


def curves_of(run: StoredRun) -> plots.Curves:
    """What the script of a run plots."""
    script = SCRIPTS[run.script]
    if run.script == GAN:
        return script.loss_curves(run.settings["real_label"], run.settings["fake_label"])
    return script.CURVES


def picture(name: str) -> Draw:
    """A drawing function that copies this picture of the first run."""
    return lambda runs, path, note: _copy(runs[0].folder / name, path, note)


def samples(at: float, name: str = "samples") -> Draw:
    """A drawing function that copies the first run's samples after `at` epochs or batches.

    If there are none, it takes the last ones before, and the remark says so. LAST is the end.
    """

    def draw(runs, path, note):
        pattern = runs[0].folder / f"{name}_[0-9]*.png"
        by_count = records.numbered(runs[0].folder, name, ".png")
        count = max((count for count in by_count if count <= at), default=None)
        _copy(by_count.get(count, pattern), path, note)
        return None if at in (count, LAST) else f"shown after {runs[0].in_words(count)}"

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
