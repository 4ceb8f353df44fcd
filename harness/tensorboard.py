"""TensorBoard event files in the run folder, for `--tensorboard`.

Every value of `metrics.jsonl` becomes a scalar of the same name, every sample grid an image. The
step is the epoch or the batch.
"""

import contextlib
import importlib.util
from pathlib import Path

from matplotlib.image import imread

from harness import records
from harness.errors import UserError


def check_installed() -> None:
    """Raise UserError if the package `tensorboard` is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "--tensorboard needs the package tensorboard: pip install tensorboard, "
            "or go without (--no_tensorboard)"
        )


class EventFile:
    """The event file of one process that trains a run.

    It starts with all earlier lines and grids, and TensorBoard drops what earlier files of the
    folder hold. So no step is there twice, and none is missing after a kill.

    Args:
        folder: the run folder.
        history: the lines of metrics so far.
    """

    def __init__(self, folder: Path, history: list[dict]):
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._folder = folder
        self._shown = set()
        self._writer = SummaryWriter(folder, purge_step=0, flush_secs=5)
        for line in history:
            self.add_line(line)
        self.add_grids(records.count_of(history))

    def add_line(self, line: dict[str, float]) -> None:
        """Add a line of metrics: a scalar per key, at the epoch or batch of the line."""
        counter = records.counter_of(line)
        for key, value in line.items():
            if key != counter:
                self._writer.add_scalar(key, value, line[counter])

    def add_grids(self, count: int, last: bool = False) -> None:
        """Add the sample grids that are new, up to the epoch or batch `count`.

        With `last` the grids without a number in their names are added, too, at step `count`.
        """
        _, grids = records.pictures(self._folder)
        for path in grids:
            kind, number = records.kind_and_number(path)
            if number is None:
                number = count if last else count + 1
            if number <= count and path not in self._shown:
                self._writer.add_image(kind, imread(path)[..., :3], number, dataformats="HWC")
                self._shown.add(path)

    def close(self) -> None:
        """Write what is left to disk, if it has room."""
        with contextlib.suppress(OSError):
            self._writer.close()
