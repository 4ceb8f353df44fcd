"""TensorBoard event files in the run folder, for `--tensorboard`.

Every value of `metrics.jsonl` becomes a scalar of the same name, every sample grid an image. The
step is the epoch or the batch.
"""

import contextlib
import sys
from pathlib import Path

from harness import records
from harness.errors import UserError
from harness.plots import read_picture


def check_installed() -> None:
    """Raise UserError if the package `tensorboard` cannot be imported."""
    try:
        import torch.utils.tensorboard  # noqa: F401 (slow, so only if it is asked for)
    except Exception as error:  # a broken installation can raise anything
        raise UserError(
            f"--tensorboard needs the package tensorboard ({type(error).__name__}: "
            f"{' '.join(str(error).split())}): pip install tensorboard, or go without "
            "(--no_tensorboard)"
        ) from error


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
                self._shown.add(path)
                try:
                    image = read_picture(path)[..., :3]
                except UserError as error:  # of an earlier process; the training goes on
                    print(error, file=sys.stderr)
                else:
                    self._writer.add_image(kind, image, number, dataformats="HWC")

    def close(self) -> None:
        """Write what is left to disk, if it has room."""
        with contextlib.suppress(OSError):
            self._writer.close()
